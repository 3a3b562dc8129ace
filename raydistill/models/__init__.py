"""Loading, building and reading Hugging Face models; plain torch."""

import logging

# transformers imports torchao where it is installed, which then warns of extensions for other devices, in every process
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
