//! What the benchmarks share: a middle relay in memory, the bare AEAD passes beside it, and the machine's own gaps.

pub mod passes;
pub mod probe;
pub mod relay;
