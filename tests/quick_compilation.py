"""XLA's flags in tests: quick to compile, patient to run. The demo compiles as users' runs do."""

import importlib.metadata

_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    # A machine so busy that one of 8 device threads waits 40 seconds for its turn is not stuck.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
]
# A flag that XLA does not know ends the process: only for the release that was looked at. There,
# what MLIR's emitters make of a fusion takes as long as all the rest of a compilation.
if importlib.metadata.version("jax").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")

XLA_FLAGS = " ".join(_FLAGS)
