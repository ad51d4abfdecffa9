//! The real programs under `BPF_PROG_TEST_RUN`: each test has its own bpffs, its own maps and a network
//! namespace of its own, and reads back verdict, packet, flow rows and counters.

mod frames;
mod pins;
mod programs;
mod rig;
