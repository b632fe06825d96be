//! The Roundtable kernel.
#![no_std]
#![no_main]

mod errno;
mod fs;
mod sync;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
