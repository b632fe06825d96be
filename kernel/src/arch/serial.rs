//! The first serial port (16550): polled output for the kernel, interrupts for the terminal.

use core::sync::atomic::{AtomicBool, Ordering};
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::FifoTriggerLevel;
use uart_16550::spec::registers::{IER, ISR};
use uart_16550::{BaudRate, Config, Uart16550};

use super::ioapic;
use crate::sync::{IrqLock, Once};

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
/// Whether the port interrupts.
static INTERRUPTS: AtomicBool = AtomicBool::new(false);

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

/// Who takes input, and who has more output.
struct Handlers {
    input: fn(u8),
    transmit_ready: fn(),
}

static HANDLERS: Once<Handlers> = Once::new();

/// Lets the port interrupt: each byte that comes goes to `input`, and `transmit_ready` runs when the port can take
/// output after [`request_transmit_interrupt`]. Both run with interrupts off, without the port's lock.
pub fn enable_interrupts(input: fn(u8), transmit_ready: fn()) {
    HANDLERS.call_once(|| Handlers { input, transmit_ready });
    if PRESENT.load(Ordering::SeqCst) && ioapic::enable_isa(COM1_INTERRUPT, interrupt) {
        INTERRUPTS.store(true, Ordering::SeqCst);
        UART.lock().enable_interrupts(IER::DATA_READY);
    }
}

/// The port's interrupt is edge triggered: it comes again only after nothing was pending.
fn interrupt() {
    let Some(handlers) = HANDLERS.get() else { return };
    let mut buffer = [0; 16];
    loop {
        let (count, can_send) = {
            let mut uart = UART.lock();
            // Set means that nothing is pending.
            if uart.isr().contains(ISR::INTERRUPT_STATUS) {
                return;
            }
            let count = uart.receive_bytes(&mut buffer);
            (count, uart.ier().contains(IER::THR_EMPTY) && uart.ready_to_send().is_ok())
        };
        // The lock is not held while the bytes are passed on: their receiver may echo them through this port.
        for byte in &buffer[..count] {
            (handlers.input)(*byte);
        }
        if can_send {
            (handlers.transmit_ready)();
        }
    }
}

/// Asks for `transmit_ready` once the port can take more output, or no longer.
pub fn request_transmit_interrupt(wanted: bool) {
    let mut uart = UART.lock();
    if wanted != uart.ier().contains(IER::THR_EMPTY) {
        if wanted {
            uart.enable_interrupts(IER::THR_EMPTY);
        } else {
            uart.disable_interrupts(IER::THR_EMPTY);
        }
    }
}

/// Sends as much as the port takes at once; all of it where the port cannot interrupt.
pub fn try_write(bytes: &[u8]) -> usize {
    if !INTERRUPTS.load(Ordering::SeqCst) {
        write(bytes);
        return bytes.len();
    }
    UART.lock().send_bytes(bytes)
}

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
