//! Programs that the agent runs on the tables of flows.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
#[expect(unsafe_code, reason = "aya-ebpf has no macro for iterators")]
mod programs {
    use aya_ebpf::macros::classifier;
    use aya_ebpf::programs::TcContext;
    use netd_bpf::prog::{self, Element};

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/bpf_map_elem")]
    fn reclaim(element: *const Element) -> i32 {
        // SAFETY: the agent attaches it to `ESTABLISHED`.
        unsafe { prog::reclaim(element) }
    }

    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/bpf_map_elem")]
    fn census(element: *const Element) -> i32 {
        // SAFETY: the agent attaches it to `NURSERY`.
        unsafe { prog::census(element) }
    }

    #[classifier]
    #[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
    fn amend(ctx: TcContext) -> i32 {
        prog::amend(&ctx)
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
