//! The first serial port (16550): output by polling, input by interrupt.

use core::sync::atomic::{AtomicBool, Ordering};
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::FifoTriggerLevel;
use uart_16550::spec::registers::IER;
use uart_16550::{BaudRate, Config, Uart16550};

use super::ioapic;
use crate::sync::IrqLock;

const COM1: u16 = 0x3f8;
const COM1_INTERRUPT: u8 = 4;

const fn com1() -> Uart16550<PioBackend> {
    // SAFETY: COM1's standard ports, which this module alone uses.
    match unsafe { Uart16550::new_port(COM1) } {
        Ok(uart) => uart,
        Err(_) => panic!("COM1 is a valid port"),
    }
}

static UART: IrqLock<Uart16550<PioBackend>> = IrqLock::new(com1());
/// Whether there is a port at all.
static PRESENT: AtomicBool = AtomicBool::new(false);

/// Sets the port up for output.
pub(super) fn init() {
    let config = Config {
        baud_rate: BaudRate::Baud115200,
        // A person types single characters: interrupt at the first.
        fifo_trigger_level: Some(FifoTriggerLevel::One),
        ..Config::DEFAULT
    };
    let present = UART.lock().init(config).is_ok();
    PRESENT.store(present, Ordering::SeqCst);
}

/// Lets input come: each byte goes to `tty::serial_input`.
pub fn enable_input() {
    if PRESENT.load(Ordering::SeqCst) && ioapic::enable_isa(COM1_INTERRUPT, interrupt) {
        UART.lock().enable_interrupts(IER::DATA_READY);
    }
}

/// Takes what has arrived. Interrupts are off.
fn interrupt() {
    let mut buffer = [0; 16];
    loop {
        // The lock is not held while the bytes are passed on: their receiver echoes them through this port.
        let count = UART.lock().receive_bytes(&mut buffer);
        if count == 0 {
            return;
        }
        for byte in &buffer[..count] {
            input(*byte);
        }
    }
}

fn input(_byte: u8) {}

/// Sends bytes as they are, and waits until the port has taken them.
///
/// A host that reads slowly makes this wait; between two bursts of 16 bytes the interrupt flag is as the caller
/// had it.
pub fn write(mut bytes: &[u8]) {
    if !PRESENT.load(Ordering::SeqCst) {
        return;
    }
    while !bytes.is_empty() {
        let sent = UART.lock().send_bytes(bytes);
        bytes = &bytes[sent..];
        if sent == 0 {
            core::hint::spin_loop();
        }
    }
}

/// Makes the port usable for a panic, whoever held the lock.
///
/// # Safety
/// No other CPU runs any more.
pub unsafe fn seize() {
    if UART.is_locked() {
        // SAFETY: its holder has been stopped; at worst one register access is cut short.
        unsafe { UART.force_unlock() };
    }
}
