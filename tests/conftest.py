import jax
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "standard")

hook = install_import_hook("pinv_jax", "beartype.beartype")
hook.__enter__()  # for the whole session: annotated shapes are checked in every test
