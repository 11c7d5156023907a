"""What a reward model is: contract, encoding, packing, one forward pass."""

from reward_model import numerics as numerics
from reward_model import quiet as quiet
