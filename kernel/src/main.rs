//! The Roundtable kernel.
#![no_std]
#![no_main]

mod errno;
mod fs;
mod sync;

// `cargo check` for the host builds all members together, and one of them may turn on a shared dependency's `std`
// feature; then std is linked and has the panic handler already.
#[cfg(not(target_os = "none"))]
extern crate std as _;

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
