//! The serial console: `ttyS0` on the first serial port.
//!
//! Interrupts put input into a ring; a thread of the kernel's own takes it to the line discipline, which may
//! send signals and wake readers. Output goes into a ring, too, which the port's transmit interrupt empties;
//! writers sleep when it is full.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general as abi;

use super::core::Tty;
use super::driver::Driver;
use super::termios::Termios;
use crate::arch::serial;
use crate::fs::DeviceId;
use crate::sched;
use crate::sync::{IrqLock, Once, WaitQueue};

/// Bytes of output that wait for the port.
const OUTPUT_SIZE: usize = 8192;
/// Further room that only echoes use: they do not wait.
const ECHO_ROOM: usize = 1024;
/// Bytes of input that wait for the line discipline.
const INPUT_SIZE: usize = 64 * 1024;

struct Output {
    bytes: VecDeque<u8>,
    stopped: bool,
}

static OUTPUT: IrqLock<Output> = IrqLock::new(Output { bytes: VecDeque::new(), stopped: false });
static INPUT: IrqLock<VecDeque<u8>> = IrqLock::new(VecDeque::new());
/// Woken when input arrives, and when the line discipline has room again.
static INPUT_WAIT: WaitQueue = WaitQueue::new();
/// The thread has input that the line discipline had no room for.
static WAITS_FOR_ROOM: AtomicBool = AtomicBool::new(false);
static CONSOLE: Once<Arc<Tty>> = Once::new();

struct SerialPort;

impl Driver for SerialPort {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut count = 0;
        change(|output| {
            count = bytes.len().min((OUTPUT_SIZE + ECHO_ROOM).saturating_sub(output.bytes.len()));
            output.bytes.extend(&bytes[..count]);
        });
        count
    }

    fn room(&self) -> usize {
        OUTPUT_SIZE.saturating_sub(OUTPUT.lock().bytes.len())
    }

    fn pending(&self) -> usize {
        OUTPUT.lock().bytes.len()
    }

    fn flush_output(&self) {
        change(|output| output.bytes.clear());
    }

    fn set_stopped(&self, stopped: bool) {
        change(|output| output.stopped = stopped);
    }

    fn send_urgent(&self, byte: u8) {
        change(|output| {
            // The ring has its full size, and never more: who sends many while output is stopped loses those that do not fit.
            if output.bytes.len() < output.bytes.capacity() {
                output.bytes.push_front(byte);
            }
        });
    }

    fn input_taken(&self) {
        // Only when the thread said that it waits for room: most reads find it idle.
        if WAITS_FOR_ROOM.swap(false, Ordering::SeqCst) {
            INPUT_WAIT.wake_all();
        }
    }
}

/// Changes the output, gives the port what it takes at once, and asks for an interrupt when there is more.
/// The port gets one burst at a time: interrupts must not stay off for the whole ring.
fn change(work: impl FnOnce(&mut Output)) {
    let (before, left) = {
        let mut output = OUTPUT.lock();
        work(&mut output);
        let before = output.bytes.len();
        if !output.stopped && before > 0 {
            let sent = serial::try_write(output.bytes.as_slices().0);
            output.bytes.drain(..sent);
        }
        serial::request_transmit_interrupt(!output.stopped && !output.bytes.is_empty());
        (before, output.bytes.len())
    };
    // Writers go on when half of the ring is free, and those who drain when all has left.
    let crossed = |limit: usize| before > limit && left <= limit;
    if (crossed(OUTPUT_SIZE / 2) || crossed(0))
        && let Some(tty) = CONSOLE.get()
    {
        tty.output.wake_all();
    }
}

/// The port can take more output. Interrupts are off.
pub fn transmit_ready() {
    change(|_| {});
}

/// A byte has come from the port. Interrupts are off.
pub fn input(byte: u8) {
    let accepted = {
        let mut ring = INPUT.lock();
        let room = ring.len() < ring.capacity();
        if room {
            ring.push_back(byte);
        }
        room
    };
    if accepted {
        INPUT_WAIT.wake_all();
    }
}

/// Sends what programs have written before the machine goes off. Output that was stopped by the STOP
/// character goes out, too.
pub fn drain() {
    loop {
        let mut chunk = [0u8; 64];
        let count = {
            let mut output = OUTPUT.lock();
            let count = output.bytes.len().min(chunk.len());
            for (to, from) in chunk.iter_mut().zip(output.bytes.drain(..count)) {
                *to = from;
            }
            count
        };
        if count == 0 {
            return;
        }
        serial::write(&chunk[..count]);
    }
}

/// Brings the console up: from here on its input is taken.
pub fn init() {
    // No allocation in the interrupt handlers: the rings have their full size from the start.
    INPUT.lock().reserve_exact(INPUT_SIZE);
    OUTPUT.lock().bytes.reserve_exact(OUTPUT_SIZE + ECHO_ROOM + 16);
    let mut termios = Termios::new(abi::B115200, 115_200);
    termios.control |= abi::CLOCAL;
    let console = Tty::new(DeviceId::new(4, 64), termios, Box::new(SerialPort));
    let console = console.expect("memory for the console");
    let tty = CONSOLE.call_once(|| console);
    let tty = tty.clone();
    sched::spawn_kernel_thread("ttyS0", move || receive_loop(&tty));
    serial::enable_interrupts(input, transmit_ready);
}

/// The console's terminal.
pub fn console() -> &'static Arc<Tty> {
    &CONSOLE
}

fn receive_loop(tty: &Tty) -> ! {
    let mut chunk = [0u8; 256];
    loop {
        let count = INPUT_WAIT.wait_until(|| {
            let mut ring = INPUT.lock();
            let count = ring.len().min(chunk.len());
            for (to, from) in chunk.iter_mut().zip(ring.drain(..count)) {
                *to = from;
            }
            (count > 0).then_some(count)
        });
        let mut done = tty.receive(&chunk[..count]);
        while done < count {
            // The reader is slow: what was typed waits until it has read, or has flushed.
            INPUT_WAIT.wait_until(|| {
                WAITS_FOR_ROOM.store(true, Ordering::SeqCst);
                tty.discipline.lock().has_room().then_some(())
            });
            done += tty.receive(&chunk[done..count]);
        }
    }
}
