#!/usr/bin/env bash
# Builds the images with a real engine, brings the stack up, scores over HTTP, runs RLOO against it
# with a restart of the scorer in its middle, lets Prometheus watch, looks at users, logs and images,
# and takes it down.
#     bash docker/verify.sh            the service; the RLOO profile too if the vLLM image is there
#     bash docker/verify.sh --rloo     builds the vLLM and trainer images as well
# Ends with 1 when a check failed, and with 0 and the word SKIPPED where there is no engine.
# Containers, networks and volumes are gone afterwards; images stay, so that the next run is quick.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

with_rloo=${1:-auto}
marker="the-heron-waits-by-the-weir-$RANDOM$RANDOM"
key="key-$RANDOM$RANDOM$RANDOM"
started_engine=
say() { printf '%s verify: %s\n' "$(date +%H:%M:%S)" "$*"; }
fail() { say "FAILED: $*" >&2; exit 1; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
pinned() { sed -n "s/^ *image: \${$1:-\(.*\)}/\1/p" compose.yaml; }

start_engine() {
  local engine=../shared/docker/local-engine.sh answered= base
  base=${PYTHON_IMAGE:-$(sed -n 's/^ARG PYTHON_IMAGE=//p' docker/Dockerfile)}
  if docker info >/dev/null 2>&1; then
    answered=yes
    docker image inspect "$base" >/dev/null 2>&1 && return
    docker pull -q "$base" >/dev/null 2>&1 && return
  fi
  if [[ -f $engine && $(id -u) == 0 ]] && bash "$engine"; then
    [[ $answered ]] || started_engine=yes
    export PYTHON_IMAGE=python:3.11-slim # the base that it makes
  else
    say "SKIPPED: no Docker engine with a base image answers, and none can be started here"
    exit 0
  fi
}

choose_compose() {
  if docker compose version >/dev/null 2>&1; then compose=(docker compose)
  elif command -v docker-compose >/dev/null; then compose=(docker-compose)
  else say "SKIPPED: neither 'docker compose' nor docker-compose is installed"; exit 0; fi
  stack=("${compose[@]}" --profile rloo --profile monitoring)
}

clean_up() {
  local code=$?
  trap - EXIT INT TERM
  if [[ $code != 0 ]]; then "${stack[@]}" logs --tail 60 2>/dev/null || true; fi
  "${stack[@]}" down --volumes --remove-orphans >/dev/null 2>&1 || true
  leftovers=$(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME")
  [[ -z $leftovers ]] || { say "containers left over: $leftovers" >&2; code=1; }
  if [[ $started_engine ]]; then stop_engine; fi
  exit "$code"
}

stop_engine() {
  local pid
  pid=$(cat "${SUMZERO_DOCKER_STATE:-/var/tmp/local-docker}/dockerd.pid" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 30); do kill -0 "$pid" 2>/dev/null || break; sleep 1; done
  say "stopped the engine that this run started"
}

container() { "${stack[@]}" ps -q "$1"; }
health() { docker inspect -f '{{.State.Health.Status}}' "$(container "$1")" 2>/dev/null || true; }

wait_healthy() {  # wait_healthy SERVICE SECONDS
  for _ in $(seq "$2"); do
    [[ $(health "$1") == healthy ]] && return
    sleep 1
  done
  fail "$1 is not healthy after $2 s"
}

post_score() {
  curl -sS --max-time 30 "http://127.0.0.1:$PORT/score" -H "Content-Type: application/json" "$@" \
    -d '{"items": [{"prompt": "Tell me about the mill. '"$marker"'", "responses": ["At the mill you find flour and sacks.", "No."]}]}'
}

check_scores() {
  python3 -c '
import json, math, sys
answer = json.load(sys.stdin)
scores = answer["results"][0]["scores"]
assert len(scores) == 2 and all(math.isfinite(score) for score in scores), answer
print("scores", scores, answer["model_version"][:18])' || fail "no scores"
}

check_service() {
  local before after id started=$SECONDS
  wait_healthy score 240
  say "healthy $((SECONDS - started)) s after it was started; scoring"
  before=$(post_score -H "Authorization: Bearer $key") || fail "no answer"
  check_scores <<<"$before"
  [[ $(post_score -o /dev/null -w '%{http_code}') == 401 ]] || fail "scored without a key"
  id=$(container score)
  [[ $(docker exec "$id" id -u) != 0 ]] || fail "the service runs as root"
  docker exec "$id" sh -c 'touch /opt/sumzero/x' 2>/dev/null && fail "the root file system is writable"
  check_metrics "$id"
  say "kernels in the image: $(docker exec "$id" python -c '
from reward_model.kernels.library import Isa, isa, library
built = [level.name.lower() for level in (Isa.AVX2, Isa.AVX512) if library(level)]
print(*(built or ["none"]), "built; this machine has", isa().name.lower())')"
  say "killing the service inside its container: the restart policy brings it back"
  docker exec "$id" python -c '
import os, signal
from pathlib import Path
for line in Path("/proc").glob("[0-9]*/cmdline"):
    if b"-m\0service" in line.read_bytes() and line.parent.name != "1":
        os.kill(int(line.parent.name), signal.SIGKILL)' || true
  for _ in $(seq 30); do
    [[ $(docker inspect -f '{{.RestartCount}}' "$id") != 0 ]] && break
    sleep 1
  done
  [[ $(docker inspect -f '{{.RestartCount}}' "$id") != 0 ]] || fail "the service did not restart"
  wait_healthy score 240
  after=$(post_score -H "Authorization: Bearer $key") || fail "no answer after the restart"
  python3 - "$before" "$after" <<'PY' || fail "scores changed over a restart"
import json, sys
before, after = (json.loads(text) for text in sys.argv[1:])
assert before["results"] == after["results"] and before["model_version"] == after["model_version"]
PY
}

check_metrics() {  # check_metrics CONTAINER: on a port that only containers reach
  docker exec "$1" python -c '
import urllib.request
text = urllib.request.urlopen("http://127.0.0.1:9100/metrics", timeout=5).read().decode()
assert "sumzero_ready 1.0" in text and "sumzero_items_total" in text, text' || fail "no metrics on 9100"
  local code
  code=$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$PORT/metrics" -H "Authorization: Bearer $key")
  [[ $code == 404 ]] || fail "/metrics is on the port of /score too: $code"
}

steps() {  # how many the RLOO run has written down
  docker cp "$1:/runs/rloo/metrics.jsonl" - 2>/dev/null | tar -xO 2>/dev/null | grep -oE '"step": *[0-9]+' | sort -u | wc -l || true
}

check_rloo() {
  say "running RLOO against vLLM and the service"
  "${stack[@]}" up -d score rloo
  local id code done_before=0 score
  id=$("${stack[@]}" ps -q rloo)
  score=$(container score)
  for _ in $(seq 600); do
    done_before=$(steps "$id")
    [[ ${done_before:-0} -ge 3 ]] && break
    [[ $(docker inspect -f '{{.State.Running}}' "$id") == true ]] || fail "the RLOO run ended early"
    sleep 1
  done
  [[ ${done_before:-0} -ge 3 ]] || fail "the RLOO run made no three steps in 10 minutes"
  [[ $(docker inspect -f '{{.State.Running}}' "$id") == true ]] || fail "RLOO ended before the restart"
  say "restarting the scorer after $done_before steps of the run"
  docker restart -t 5 "$score" >/dev/null
  [[ $(docker inspect -f '{{.State.Running}}' "$id") == true ]] || fail "RLOO did not outlive the restart"
  wait_healthy score 240
  code=$(timeout 900 docker wait "$id") || fail "the RLOO run did not end within 15 minutes"
  [[ $code == 0 ]] || fail "the RLOO run ended with exit code $code"
  [[ $(steps "$id") -gt $done_before ]] || fail "no step after the restart of the scorer"
  for name in vllm score; do
    [[ $(docker exec "$(container "$name")" id -u) != 0 ]] || fail "$name runs as root"
  done
  [[ $(docker inspect -f '{{.Config.User}}' "$id") == sumzero ]] || fail "rloo runs as root"
  say "RLOO ended by itself after $(steps "$id") steps"
}

check_monitoring() {
  if ! docker image inspect "$prometheus" >/dev/null 2>&1 && ! docker pull -q "$prometheus" >/dev/null 2>&1; then
    say "$prometheus cannot be pulled here; one is built from Debian's packages"
    prometheus=sumzero-prometheus
    docker build -q -f docker/Dockerfile.prometheus -t "$prometheus" \
      ${PYTHON_IMAGE:+--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE"} docker >/dev/null
  fi
  export PROMETHEUS_IMAGE=$prometheus
  say "watching the service with $prometheus"
  "${stack[@]}" up -d prometheus
  wait_healthy prometheus 120
  check_watched || fail "Prometheus does not see the service"
  [[ $(docker exec "$(container prometheus)" id -u) != 0 ]] || fail "prometheus runs as root"
  if docker image inspect "$grafana" >/dev/null 2>&1 || docker pull -q "$grafana" >/dev/null 2>&1; then
    "${stack[@]}" up -d grafana
    wait_healthy grafana 180
    curl -sf "http://127.0.0.1:$GRAFANA_PORT/api/search?type=dash-db" | grep -qi sumzero || fail "Grafana has no dashboard"
  else
    say "Grafana is not run: $grafana cannot be pulled here"
  fi
}

check_watched() {  # the service is scraped, what it scored is counted, every rule is loaded and quiet
  python3 - "http://127.0.0.1:$PROMETHEUS_PORT/api/v1" "$(grep -c 'alert:' deploy/prometheus/rules.yaml)" <<'PY'
import json, sys, time, urllib.parse, urllib.request
url, alerts = sys.argv[1], int(sys.argv[2])
def ask(path):
    with urllib.request.urlopen(f"{url}/{path}", timeout=5) as answer:
        return json.load(answer)["data"]
def value(query):
    result = ask("query?" + urllib.parse.urlencode({"query": query}))["result"]
    return float(result[0]["value"][1]) if result else 0.0
deadline = time.monotonic() + 60
while not (value('up{job="sumzero"}') == 1 and value("sum(sumzero_items_total)") > 0):
    assert time.monotonic() < deadline, ask("targets")
    time.sleep(1)
rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
assert len(rules) == alerts and not any(rule.get("lastError") for rule in rules), rules
firing = [rule["name"] for rule in rules if rule["state"] == "firing"]
assert not firing, firing
print("scraped;", len(rules), "rules loaded, none fires")
PY
}

check_images() {
  local image
  for image in "sumzero:${TAG:-cpu}" "sumzero-trainer:${TAG:-cpu}" "sumzero-vllm:${TAG:-cpu}"; do
    docker image inspect "$image" >/dev/null 2>&1 || continue
    if docker image inspect "$image" | grep -qF "$key"; then fail "an API key in $image"; fi
    if docker history --no-trunc "$image" | grep -qF "$key"; then fail "an API key in $image"; fi
    say "$image: $(docker image inspect -f '{{.Size}}' "$image" | awk '{printf "%.1f GB", $1 / 1e9}'), $(bash docker/contents.sh "$image" | wc -l) packages"
  done
}

check_logs() {
  local logs
  logs=$("${stack[@]}" logs --no-color 2>&1)
  grep -q "score" <<<"$logs" || fail "no logs to look at"
  if grep -qF "$marker" <<<"$logs"; then fail "user text in a log"; fi
  if grep -qF "$key" <<<"$logs"; then fail "an API key in a log"; fi
}

check_stop() {
  local id
  id=$(container score)
  "${compose[@]}" stop score >/dev/null 2>&1
  [[ $(docker inspect -f '{{.State.ExitCode}}' "$id") == 0 ]] || fail "SIGTERM did not end the service with 0"
}

start_engine
choose_compose
COMPOSE_PROJECT_NAME="sumzero-verify-$$"
PORT=$(free_port) PROMETHEUS_PORT=$(free_port) GRAFANA_PORT=$(free_port)
SUMZERO_API_KEYS=$key
prometheus=${PROMETHEUS_IMAGE:-$(pinned PROMETHEUS_IMAGE)} grafana=${GRAFANA_IMAGE:-$(pinned GRAFANA_IMAGE)}
# A machine whose pip has wheels of its own lets pip find torch by itself.
if [[ -z ${TORCH_INDEX_URL+set} && -n ${PIP_FIND_LINKS:-} ]]; then TORCH_INDEX_URL=; fi
export COMPOSE_PROJECT_NAME PORT PROMETHEUS_PORT GRAFANA_PORT SUMZERO_API_KEYS ${TORCH_INDEX_URL+TORCH_INDEX_URL}
trap clean_up EXIT
trap 'exit 130' INT TERM

say "building the service image"
"${compose[@]}" build score
say "starting"
"${compose[@]}" up -d score
check_service
if [[ $with_rloo == --rloo ]]; then "${stack[@]}" build policy vllm; fi
if docker image inspect "sumzero-vllm:${TAG:-cpu}" "sumzero-trainer:${TAG:-cpu}" >/dev/null 2>&1; then
  check_rloo
else
  say "the RLOO profile is not run: its images are not built (docker/verify.sh --rloo builds them)"
fi
check_monitoring
check_logs
check_images
check_stop
say "verified"
