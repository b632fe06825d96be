//! Port I/O.

use core::arch::asm;

macro_rules! port {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads from an I/O port.
        ///
        /// # Safety
        /// Reading may have side effects on the device behind `port`: the caller owns it.
        pub unsafe fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: the caller's promise.
            unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nostack, preserves_flags)) };
            value
        }

        #[allow(dead_code)] // each width has both directions
        /// Writes to an I/O port.
        ///
        /// # Safety
        /// The device behind `port` may do anything, to memory too: the caller owns it.
        pub unsafe fn $write(port: u16, value: $type) {
            // SAFETY: the caller's promise.
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack, preserves_flags)) };
        }
    };
}

port!(read_u8, write_u8, u8, "al");
port!(read_u16, write_u16, u16, "ax");
port!(read_u32, write_u32, u32, "eax");
