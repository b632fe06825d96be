//! Terminals: reading, writing, readiness, hanging up.
//!
//! Input comes from the device's thread through [`Tty::receive`], which edits and echoes. Locks: `reading`
//! and `writing` make reads and writes atomic and are held over user copies; `discipline` is a spin lock, the
//! driver's own locks are inside of it. Signals are sent with none of them held.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use super::discipline::{Action, Discipline, INPUT_SIZE, Output};
use super::driver::Driver;
use super::job::{self, Job};
use super::termios::Termios;
use crate::errno::{Errno, Result};
use crate::fs::iobuf::{Sink, Source};
use crate::fs::{DeviceId, Events};
use crate::memory::fallible;
use crate::process;
use crate::sched;
use crate::sync::{Mutex, MutexGuard, SpinLock, WaitError, WaitQueue};
use crate::time;

/// Bytes of a program's output that are processed at a time.
const CHUNK: usize = 512;
/// The most that one of them becomes: a tab.
const WIDEST: usize = 8;
/// Characters that are looked at or shown in one hold of the discipline's lock.
const STEPS: usize = 128;
/// Readiness for output wants this much room, so that programs do not write byte by byte.
const WRITABLE_ROOM: usize = 256;

/// The size of a terminal's window, as TIOCGWINSZ moves it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Rows, characters.
    pub rows: u16,
    /// Columns, characters.
    pub columns: u16,
    /// Width in pixels.
    pub width: u16,
    /// Height in pixels.
    pub height: u16,
}

/// What an open file of a terminal is to its terminal.
#[derive(Clone, Copy)]
pub struct Opened {
    /// [`Tty::generation`] when it was opened.
    pub generation: u64,
    /// Open for reading?
    pub readable: bool,
    /// The master side of a pseudoterminal: it acts on the other side's terminal, and job control does not
    /// hold it up.
    pub master: bool,
    /// Open as `/dev/console`: no hang-up takes it away, and job control does not stop who reads or writes
    /// it.
    pub console: bool,
}

/// A terminal.
pub struct Tty {
    /// Its device number.
    pub device: DeviceId,
    pub(super) discipline: SpinLock<Discipline>,
    /// The settings of a new terminal, which hanging up brings back.
    defaults: Termios,
    window: SpinLock<WindowSize>,
    /// Session and foreground group.
    pub(super) job: SpinLock<Job>,
    reading: Mutex<()>,
    writing: Mutex<()>,
    /// Woken when there is input, or the end of it.
    pub(super) input: WaitQueue,
    /// Woken when there is room for output, and when all output has left.
    pub(super) output: WaitQueue,
    /// Files opened under an earlier number are hung up.
    generation: AtomicU64,
    /// TIOCEXCL: no further opens.
    pub(super) exclusive: AtomicBool,
    /// Open files.
    pub(super) opens: AtomicU32,
    pub(super) driver: Box<dyn Driver>,
}

/// Takes the turn to read or to write. Who has it may keep it for as long as there is nothing to read, or no room: a signal ends the wait.
pub(super) fn take_turn(turn: &Mutex<()>, nonblocking: bool) -> Result<MutexGuard<'_, ()>> {
    if nonblocking {
        turn.try_lock().ok_or(Errno::EAGAIN)
    } else {
        turn.lock_interruptible().ok_or(Errno::ERESTARTSYS)
    }
}

impl Tty {
    /// A terminal with nobody on it.
    pub fn new(device: DeviceId, termios: Termios, driver: Box<dyn Driver>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            device,
            discipline: SpinLock::new(Discipline::new(termios)?),
            defaults: termios,
            window: SpinLock::default(),
            job: SpinLock::default(),
            reading: Mutex::new(()),
            writing: Mutex::new(()),
            input: WaitQueue::new(),
            output: WaitQueue::new(),
            generation: AtomicU64::new(0),
            exclusive: AtomicBool::new(false),
            opens: AtomicU32::new(0),
            driver,
        }))
    }

    /// What a file that is opened now remembers, for [`Self::hung_up`].
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Has a hang-up taken the terminal away from this file?
    pub fn hung_up(&self, file: Opened) -> bool {
        !file.console && self.generation() != file.generation
    }

    /// The settings.
    pub fn termios(&self) -> Termios {
        self.discipline.lock().termios
    }

    /// New settings, for input that comes from now on.
    pub fn set_termios(&self, termios: Termios) {
        let mut discipline = self.discipline.lock();
        let flow_control = discipline.termios.input(abi::IXON);
        discipline.set_termios(termios);
        let restart = flow_control && !termios.input(abi::IXON) && discipline.stopped;
        if restart {
            discipline.stopped = false;
            self.driver.set_stopped(false);
        }
        drop(discipline);
        // What is readable may have changed, and there may be room for input.
        self.input.wake_all();
        self.driver.input_taken();
        if restart {
            self.output.wake_all();
        }
    }

    /// The window's size.
    pub fn window(&self) -> WindowSize {
        *self.window.lock()
    }

    /// Sets the window's size; the foreground group hears of a change.
    pub fn set_window(&self, size: WindowSize) {
        let changed = {
            let mut window = self.window.lock();
            core::mem::replace(&mut *window, size) != size
        };
        if changed {
            self.signal_foreground(abi::SIGWINCH);
        }
    }

    /// The foreground process group; 0 for none.
    pub fn foreground(&self) -> crate::process::Pid {
        self.job.lock().foreground
    }

    pub(super) fn signal_foreground(&self, signal: u32) {
        let job = *self.job.lock();
        job.signal(signal);
    }

    /// Input from the device, as much as there is room for; returns how much that was.
    ///
    /// One character may stand for a whole line that is shown again or erased, and other threads spin for the lock. So a hold of it ends
    /// after [`STEPS`], and what such a character has begun goes on in the next one.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        let mut ready = false;
        let mut resumed = false;
        loop {
            let mut pending = Action::None;
            let mut discipline = self.discipline.lock();
            let mut echo = core::mem::take(&mut discipline.echo);
            discipline.begin_hold(STEPS);
            while discipline.may_go_on() {
                let was_stopped = discipline.stopped;
                let action = if discipline.is_unfinished() {
                    discipline.go_on(&mut echo);
                    Action::None
                } else if taken < bytes.len() && discipline.has_room() {
                    taken += 1;
                    discipline.receive(bytes[taken - 1], &mut echo)
                } else {
                    break;
                };
                if echo.is_filling() {
                    self.driver.write(echo.bytes());
                    echo.clear();
                }
                if was_stopped && !discipline.stopped {
                    // By the START character, or with IXANY by one that ended a line as well.
                    self.driver.set_stopped(false);
                    resumed = true;
                }
                match action {
                    Action::None => {}
                    Action::Ready => ready = true,
                    Action::Stopped(stopped) => self.driver.set_stopped(stopped),
                    Action::Signal { .. } => {
                        pending = action;
                        break;
                    }
                }
            }
            if let Action::Signal { flush: true, .. } = pending {
                self.driver.flush_output();
            }
            if let Action::Signal { .. } = pending {
                self.driver.set_stopped(discipline.stopped);
            }
            // An echo for which there is no room is lost, as on a real terminal.
            self.driver.write(echo.bytes());
            echo.clear();
            discipline.echo = echo;
            let more = discipline.is_unfinished() || taken < bytes.len() && discipline.has_room();
            drop(discipline);
            if let Action::Signal { signal, .. } = pending {
                self.signal_foreground(signal);
                self.output.wake_all();
            }
            if !more {
                break;
            }
            sched::cond_resched();
        }
        if ready {
            self.input.wake_all();
        }
        if resumed {
            // Writers wait while output is stopped.
            self.output.wake_all();
        }
        taken
    }

    /// read(2).
    pub fn read(&self, file: Opened, nonblocking: bool, sink: &mut Sink) -> Result<usize> {
        // A hang-up from here on ends the read, of the console too.
        let generation = self.generation();
        if self.hung_up(file) {
            return Ok(0);
        }
        let check_background = || if file.console { Ok(()) } else { job::check_background_read(self) };
        check_background()?;
        let _reader = take_turn(&self.reading, nonblocking)?;
        if sink.remaining() == 0 {
            return Ok(0);
        }
        let mut done = 0;
        // Times of VTIME are in tenths of a second.
        let tenth = time::SECOND / 10;
        loop {
            // First: what is typed after the hang-up is for others.
            if self.generation() != generation {
                return Ok(done);
            }
            let termios = self.termios();
            let (minimum, timeout) = if termios.local(abi::ICANON) {
                (1, None)
            } else {
                let minimum = usize::from(termios.char(abi::VMIN));
                let limit = u64::from(termios.char(abi::VTIME)) * tenth;
                match (minimum, limit) {
                    (0, limit) => (1, Some(limit)),
                    (minimum, 0) => (minimum, None),
                    // The timer runs between bytes: from the first on.
                    (minimum, limit) => (minimum, (done > 0).then_some(limit)),
                }
            };
            let count = self.read_available(sink)?;
            if let Some(count) = count {
                done += count;
                if termios.local(abi::ICANON) || done >= minimum || sink.remaining() == 0 {
                    return Ok(done);
                }
                if count > 0 {
                    continue;
                }
            }
            if done > 0 && nonblocking {
                return Ok(done);
            }
            if self.driver.other_end_closed() {
                // What came before the close is read first.
                if self.discipline.lock().readable(1) {
                    continue;
                }
                return if done > 0 { Ok(done) } else { Err(Errno::EIO) };
            }
            if timeout == Some(0) {
                return Ok(done);
            }
            if nonblocking {
                return Err(Errno::EAGAIN);
            }
            let deadline = timeout.map(|t| time::now() + t);
            let woken = self.input.wait_event(deadline, || {
                let ready = self.discipline.lock().readable(1);
                (ready || self.generation() != generation || self.driver.other_end_closed()).then_some(())
            });
            match woken {
                Ok(()) => {}
                Err(WaitError::TimedOut) => return Ok(done),
                Err(WaitError::Interrupted) if done > 0 => return Ok(done),
                Err(error) => return Err(error.into()),
            }
            // Another process may be in the foreground by now.
            check_background()?;
        }
    }

    /// Copies out what is there; `None` when nothing is, `Some(0)` at an end of file.
    fn read_available(&self, sink: &mut Sink) -> Result<Option<usize>> {
        let size = sink.remaining().min(INPUT_SIZE);
        let mut bytes = fallible::with_capacity(size)?;
        let cells = {
            let discipline = self.discipline.lock();
            if !discipline.readable(1) {
                return Ok(None);
            }
            discipline.peek(size, &mut bytes)
        };
        let count = if bytes.is_empty() { 0 } else { sink.write(&bytes)? };
        let consumed = if count == bytes.len() { cells } else { count };
        self.discipline.lock().consume(consumed);
        self.driver.input_taken();
        Ok(Some(count))
    }

    /// write(2).
    pub fn write(&self, file: Opened, nonblocking: bool, source: &mut Source) -> Result<usize> {
        if self.hung_up(file) {
            return Err(Errno::EIO);
        }
        if !file.console && self.termios().local(abi::TOSTOP) {
            job::check_background_change(self)?;
        }
        let _writer = take_turn(&self.writing, nonblocking)?;
        let mut done = 0;
        let mut buffer = [0u8; CHUNK];
        let mut processed = Output::with_room(source.remaining().min(CHUNK) * WIDEST)?;
        let over = || self.hung_up(file) || self.driver.other_end_closed();
        while source.remaining() > 0 {
            // There may be gigabytes, and somebody who takes them as fast as they come.
            sched::cond_resched();
            let end = if over() {
                Some(Errno::EIO)
            } else {
                process::current().signal_pending().then_some(Errno::ERESTARTSYS)
            };
            if let Some(error) = end {
                return if done > 0 { Ok(done) } else { Err(error) };
            }
            if !self.has_room() {
                if nonblocking {
                    return if done > 0 { Ok(done) } else { Err(Errno::EAGAIN) };
                }
                let woken = self.output.wait_event(None, || (self.has_room() || over()).then_some(()));
                match woken {
                    Err(_) if done > 0 => return Ok(done),
                    other => other?,
                }
                continue;
            }
            let want = source.remaining().min(CHUNK);
            let count = match source.read(&mut buffer[..want]) {
                Err(_) if done > 0 => return Ok(done),
                other => other?,
            };
            let sent = self.process_output(&buffer[..count], &mut processed);
            source.rewind(count - sent);
            done += sent;
        }
        Ok(done)
    }

    /// Is there room for a byte of output, whatever it becomes?
    fn has_room(&self) -> bool {
        self.driver.room() >= if self.termios().output(abi::OPOST) { WIDEST } else { 1 }
    }

    /// Hands bytes to the device, processed; returns how many it took. None if there is no room for the widest of them.
    fn process_output(&self, bytes: &[u8], processed: &mut Output) -> usize {
        let mut discipline = self.discipline.lock();
        if !discipline.termios.output(abi::OPOST) {
            return self.driver.write(bytes);
        }
        processed.clear();
        let mut sent = 0;
        // Only this function and echoes put output in, both under the lock: the room cannot shrink.
        let room = self.driver.room();
        for byte in bytes {
            if processed.bytes().len() + WIDEST > room {
                break;
            }
            discipline.emit(*byte, processed);
            sent += 1;
        }
        self.driver.write(processed.bytes());
        sent
    }

    /// Readiness.
    pub fn poll(&self, file: Opened) -> Events {
        if self.hung_up(file) {
            return Events::READABLE | Events::WRITABLE | Events::HUP | Events::ERR;
        }
        let mut events = Events::empty();
        {
            let discipline = self.discipline.lock();
            let t = &discipline.termios;
            let minimum = if t.char(abi::VTIME) == 0 { usize::from(t.char(abi::VMIN)) } else { 1 };
            if discipline.readable(minimum) {
                events |= Events::READABLE;
            }
        }
        if self.driver.other_end_closed() {
            events |= Events::HUP | Events::READABLE;
        }
        if self.driver.room() >= WRITABLE_ROOM {
            events |= Events::WRITABLE;
        }
        events
    }

    /// Waits until all output has left.
    pub fn drain(&self, file: Opened) -> Result<()> {
        self.output.wait_event(None, || {
            (self.driver.pending() == 0 || self.hung_up(file) || self.driver.other_end_closed()).then_some(())
        })?;
        Ok(())
    }

    /// Forgets what was typed and not read.
    pub fn flush_input(&self) {
        self.discipline.lock().flush_input();
        self.driver.input_taken();
    }

    /// Forgets what was written and has not left.
    pub fn flush_output(&self) {
        self.driver.flush_output();
        self.output.wake_all();
    }

    /// Stops output, or goes on, as the STOP and START characters do.
    pub fn set_stopped(&self, stopped: bool) {
        {
            let mut discipline = self.discipline.lock();
            discipline.stopped = stopped;
            self.driver.set_stopped(stopped);
        }
        if !stopped {
            self.output.wake_all();
        }
    }

    /// Files that have it open no longer do, but for those of `/dev/console`: they read an end of file and
    /// cannot write. A pseudoterminal has the settings of a new one again; a serial line keeps its own.
    pub(super) fn hang_up(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        {
            let mut discipline = self.discipline.lock();
            discipline.flush_input();
            if self.driver.is_pseudoterminal() {
                discipline.set_termios(self.defaults);
            }
            discipline.stopped = false;
            self.driver.set_stopped(false);
        }
        self.driver.input_taken();
        self.input.wake_all();
        self.output.wake_all();
    }
}
