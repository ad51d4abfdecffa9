//! Program logic (BPF target only).
