//! Open files of terminals, and the devices that lead to them.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as abi;

use super::core::{Opened, Tty};
use super::ioctl;
use super::pty::{self, PTMX};
use super::{job, serial};
use crate::errno::{Errno, Result};
use crate::fs::device::register_character_device;
use crate::fs::{DeviceId, Events, File, FileOps, Path, Sink, Source, dev};
use crate::process;
use crate::sync::WaitQueue;

/// An open file of a terminal.
pub struct TtyFile {
    tty: Arc<Tty>,
    generation: u64,
    console: bool,
}

impl TtyFile {
    /// Opens `tty` with `flags` (`O_*`); it may become the controlling terminal.
    pub fn open(tty: Arc<Tty>, flags: u32) -> Result<Arc<dyn FileOps>> {
        let privileged = process::current().credentials().capable(abi::CAP_SYS_ADMIN);
        if tty.exclusive.load(Ordering::SeqCst) && !privileged {
            return Err(Errno::EBUSY);
        }
        if flags & abi::O_NOCTTY == 0 && process::try_current().is_some_and(|t| !t.is_kernel()) {
            job::opened(&tty, flags & abi::O_ACCMODE != abi::O_WRONLY);
        }
        Ok(Self::attach(tty, false))
    }

    /// As `open`, without becoming the controlling terminal. `console`: as `/dev/console`.
    fn attach(tty: Arc<Tty>, console: bool) -> Arc<dyn FileOps> {
        tty.opens.fetch_add(1, Ordering::SeqCst);
        let generation = tty.generation();
        Arc::new(Self { tty, generation, console })
    }

    fn opened(&self, file: &File) -> Opened {
        let Self { generation, console, .. } = *self;
        Opened { generation, readable: file.readable(), master: false, console }
    }
}

impl Drop for TtyFile {
    fn drop(&mut self) {
        if self.tty.opens.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.tty.exclusive.store(false, Ordering::SeqCst);
            self.tty.driver.all_closed();
        }
    }
}

impl FileOps for TtyFile {
    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        self.tty.read(self.opened(file), file.nonblocking(), sink)
    }

    fn write_at(&self, file: &File, _: &mut u64, source: &mut Source) -> Result<usize> {
        self.tty.write(self.opened(file), file.nonblocking(), source)
    }

    fn poll(&self, file: &File) -> Events {
        self.tty.poll(self.opened(file))
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.tty.input);
        visit(&self.tty.output);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn signals_readiness(&self) -> bool {
        true
    }

    fn kernel_bytes(&self) -> u64 {
        // Relaxed: a number that tells.
        let opens = self.tty.opens.load(Ordering::Relaxed).max(1);
        if self.tty.driver.other_end_closed() { pty::MEMORY as u64 / u64::from(opens) } else { 0 }
    }

    fn ioctl(&self, file: &File, command: u32, argument: usize) -> Result<usize> {
        ioctl::ioctl(&self.tty, self.opened(file), command, argument)
    }
}

/// `/dev/tty` is 5:0, `/dev/console` 5:1, `/dev/ptmx` 5:2.
const TTY: DeviceId = DeviceId::new(5, 0);
const CONSOLE: DeviceId = DeviceId::new(5, 1);
const SERIAL: DeviceId = DeviceId::new(4, 64);

fn open_aux(device: DeviceId, _: &Path, flags: u32) -> Result<Arc<dyn FileOps>> {
    match device {
        TTY => {
            let tty = job::current_terminal().ok_or(Errno::ENXIO)?;
            Ok(TtyFile::attach(tty, false))
        }
        // The console never becomes the controlling terminal by being opened.
        CONSOLE => Ok(TtyFile::attach(serial::console().clone(), true)),
        PTMX => pty::open_master(flags),
        _ => Err(Errno::ENXIO),
    }
}

fn open_serial(_: DeviceId, _: &Path, flags: u32) -> Result<Arc<dyn FileOps>> {
    TtyFile::open(serial::console().clone(), flags)
}

/// Brings the console up, and makes the devices known with their nodes.
pub fn init() -> Result<()> {
    serial::init();
    register_character_device(TTY, 3, open_aux);
    register_character_device(SERIAL, 1, open_serial);
    pty::init();
    dev::create_node("tty", TTY, 0o666)?;
    dev::create_node("console", CONSOLE, 0o600)?;
    dev::create_node("ptmx", PTMX, 0o666)?;
    dev::create_node("ttyS0", SERIAL, 0o660)
}
