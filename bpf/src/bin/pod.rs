//! Programs of the pods' interfaces.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
mod programs {
    use aya_ebpf::macros::classifier;
    use aya_ebpf::programs::TcContext;
    use netd_bpf::prog;

    #[classifier]
    fn pod_egress(ctx: TcContext) -> i32 {
        prog::pod_egress(&ctx)
    }

    #[classifier]
    fn pod_ingress(ctx: TcContext) -> i32 {
        prog::pod_ingress(&ctx)
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
