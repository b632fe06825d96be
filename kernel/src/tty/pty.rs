//! Pseudoterminals: a terminal whose device is another program.
//!
//! `/dev/ptmx` makes a pair. The master side is a [`Master`]; the other, `/dev/pts/N`, is an ordinary
//! terminal whose driver puts output where the master reads it, and whose input is what the master writes.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general as abi;
use linux_raw_sys::ioctl as request;

use super::core::{Opened, Tty, take_turn};
use super::discipline;
use super::driver::Driver;
use super::file::TtyFile;
use super::ioctl;
use super::termios::Termios;
use crate::errno::{Errno, Result};
use crate::fs::device::register_character_device;
use crate::fs::open::open_place;
use crate::fs::path::{Start, resolve};
use crate::fs::{Dentry, DeviceId, Events, File, FileOps, Path, Sink, Source};
use crate::memory::fallible;
use crate::mm::uaccess::{read_user, write_user};
use crate::process;
use crate::sched;
use crate::sync::{Mutex, SpinLock, WaitQueue};

/// Bytes from the terminal that wait for the master.
const BUFFER_SIZE: usize = 8192;
/// Bytes of a pair: its master answers for them, and once that is closed who has the terminal open.
pub(super) const MEMORY: usize = BUFFER_SIZE + discipline::MEMORY;
/// Major number of `/dev/pts/N`.
const MAJOR: u32 = 136;
/// The most pairs at once.
const MOST: u32 = 4096;

/// What both sides share.
struct Link {
    number: u32,
    output: SpinLock<Output>,
    /// Woken when there is something for the master.
    readable: WaitQueue,
    /// Woken when there is room for what the master writes.
    writable: WaitQueue,
    /// The terminal's side was open once.
    opened: AtomicBool,
    master_closed: AtomicBool,
}

impl Link {
    fn is_master_closed(&self) -> bool {
        self.master_closed.load(Ordering::SeqCst)
    }
}

struct Output {
    /// With room for [`BUFFER_SIZE`] bytes from the start.
    bytes: VecDeque<u8>,
    stopped: bool,
    /// TIOCPKT: each read begins with a byte of status.
    packet_mode: bool,
    status: u8,
}

impl Output {
    fn new() -> Result<Self> {
        let mut bytes = VecDeque::new();
        fallible::reserve_queue(&mut bytes, BUFFER_SIZE)?;
        Ok(Self { bytes, stopped: false, packet_mode: false, status: 0 })
    }
}

/// The terminal's driver.
struct Slave(Arc<Link>);

impl Slave {
    fn status(&self, set: u32, clear: u32) {
        {
            let mut output = self.0.output.lock();
            if !output.packet_mode {
                return;
            }
            output.status = output.status & !(clear as u8) | set as u8;
        }
        self.0.readable.wake_all();
    }
}

impl Driver for Slave {
    fn write(&self, bytes: &[u8]) -> usize {
        let count = {
            let mut output = self.0.output.lock();
            if output.stopped {
                return 0;
            }
            let count = bytes.len().min(BUFFER_SIZE.saturating_sub(output.bytes.len()));
            output.bytes.extend(&bytes[..count]);
            count
        };
        if count > 0 {
            self.0.readable.wake_all();
        }
        count
    }

    fn room(&self) -> usize {
        let output = self.0.output.lock();
        if output.stopped { 0 } else { BUFFER_SIZE.saturating_sub(output.bytes.len()) }
    }

    fn pending(&self) -> usize {
        // What the master has not read counts as delivered, as in Linux: a terminal that is drained does not
        // wait for it.
        0
    }

    fn flush_output(&self) {
        // Nothing is on its way: as with `pending`, what the master may read has been delivered.
        self.status(abi::TIOCPKT_FLUSHWRITE, 0);
    }

    fn set_stopped(&self, stopped: bool) {
        let changed = {
            let mut output = self.0.output.lock();
            core::mem::replace(&mut output.stopped, stopped) != stopped
        };
        if changed && stopped {
            self.status(abi::TIOCPKT_STOP, abi::TIOCPKT_START);
        } else if changed {
            self.status(abi::TIOCPKT_START, abi::TIOCPKT_STOP);
        }
    }

    fn input_taken(&self) {
        self.0.writable.wake_all();
    }

    fn other_end_closed(&self) -> bool {
        self.0.is_master_closed()
    }

    fn is_pseudoterminal(&self) -> bool {
        true
    }

    fn all_closed(&self) {
        self.0.readable.wake_all();
        self.0.writable.wake_all();
        if self.other_end_closed() {
            forget(&self.0);
        }
    }
}

/// `/dev/ptmx`.
pub const PTMX: DeviceId = DeviceId::new(5, 2);

/// A pair. It has its number until both sides are closed, and is found by it for as long as the master is open.
pub struct Pair {
    link: Arc<Link>,
    tty: Arc<Tty>,
    locked: AtomicBool,
    uid: u32,
    gid: u32,
    /// The terminal's name, kept with what chmod(2) and chown(2) made of it.
    dentry: SpinLock<Option<Arc<Dentry>>>,
}

impl Pair {
    /// The terminal's device number.
    pub fn device(&self) -> DeviceId {
        self.tty.device
    }

    /// User and group that made the pair.
    pub fn owner(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// Keeps the name for as long as the pair exists.
    pub fn keep(&self, dentry: &Arc<Dentry>) {
        let old = self.dentry.lock().replace(dentry.clone());
        drop(old);
    }
}

static PAIRS: SpinLock<BTreeMap<u32, Arc<Pair>>> = SpinLock::growing(BTreeMap::new());

/// Registers the terminals' device numbers.
pub fn init() {
    register_character_device(DeviceId::new(MAJOR, 0), MOST, open_slave);
}

/// The lowest number from `from` on of a pair, for `/dev/pts`, and whether the pair is found by it.
pub fn next_number(from: u32) -> Option<(u32, bool)> {
    PAIRS.lock().range(from..).next().map(|(number, pair)| (*number, !pair.link.is_master_closed()))
}

/// Gives the pair's number back: both sides are closed. Each of the two looks, and both may find it so; the number may be another's then.
fn forget(link: &Arc<Link>) {
    let mut pairs = PAIRS.lock();
    let is_own = pairs.get(&link.number).is_some_and(|pair| Arc::ptr_eq(&pair.link, link));
    let pair = if is_own { pairs.remove(&link.number) } else { None };
    drop(pairs);
    // The pair may go with it, without the lock.
    drop(pair);
}

/// The lowest number of no pair. Some numbers are looked at in each hold of the lock.
fn free_number() -> Result<u32> {
    const BATCH: usize = 64;
    let mut number = 0;
    while number < MOST {
        let pairs = PAIRS.lock();
        for used in pairs.range(number..).map(|(used, _)| *used).take(BATCH) {
            if used != number {
                return Ok(number);
            }
            number += 1;
        }
        // None is in use from here on, or the next hold goes on with it.
        if !pairs.contains_key(&number) && number < MOST {
            return Ok(number);
        }
        drop(pairs);
        sched::cond_resched();
    }
    Err(Errno::ENOSPC)
}

/// The pair with that number, if its master is open.
pub fn find(number: u32) -> Option<Arc<Pair>> {
    let pair = PAIRS.lock().get(&number).cloned();
    pair.filter(|pair| !pair.link.is_master_closed())
}

/// The master side of a pair.
pub struct Master {
    pair: Arc<Pair>,
    reading: Mutex<()>,
    writing: Mutex<()>,
}

/// Opens `/dev/ptmx`: a new pair. It is locked until TIOCSPTLCK says otherwise.
pub fn open_master(_flags: u32) -> Result<Arc<dyn FileOps>> {
    let credentials = process::current().credentials();
    // The place is reserved under the lock, with everything made before it.
    loop {
        let number = free_number()?;
        let link = Arc::new(Link {
            number,
            output: SpinLock::new(Output::new()?),
            readable: WaitQueue::new(),
            writable: WaitQueue::new(),
            opened: AtomicBool::new(false),
            master_closed: AtomicBool::new(false),
        });
        let termios = Termios::new(abi::B38400, 38_400);
        let device = DeviceId::new(MAJOR, number);
        let tty = Tty::new(device, termios, Box::new(Slave(link.clone())))?;
        let pair = Arc::new(Pair {
            link,
            tty,
            locked: AtomicBool::new(true),
            uid: credentials.fsuid,
            gid: credentials.fsgid,
            dentry: SpinLock::new(None),
        });
        let mut pairs = PAIRS.lock();
        if pairs.contains_key(&number) {
            drop(pairs);
            continue;
        }
        pairs.insert(number, pair.clone());
        drop(pairs);
        return Ok(Arc::new(Master { pair, reading: Mutex::new(()), writing: Mutex::new(()) }));
    }
}

fn open_slave(device: DeviceId, _: &Path, flags: u32) -> Result<Arc<dyn FileOps>> {
    let pair = find(device.minor).ok_or(Errno::EIO)?;
    if pair.locked.load(Ordering::SeqCst) {
        return Err(Errno::EIO);
    }
    let file = TtyFile::open(pair.tty.clone(), flags)?;
    // Once more behind the count of open files: either the master's end sees that, or the end is seen here.
    if pair.link.is_master_closed() {
        return Err(Errno::EIO);
    }
    // Behind the count of open files, for `slave_gone`.
    pair.link.opened.store(true, Ordering::SeqCst);
    Ok(file)
}

impl Master {
    /// Somebody was at the other side, and nobody is there any more. The count of open files alone says so: a mark beside it would be
    /// that of a last close while another thread opens it.
    fn slave_gone(&self) -> bool {
        self.pair.link.opened.load(Ordering::SeqCst) && self.pair.tty.opens.load(Ordering::SeqCst) == 0
    }

    fn has_data(&self) -> bool {
        let output = self.pair.link.output.lock();
        !output.bytes.is_empty() || output.packet_mode && output.status != 0
    }

    /// Copies out what there is, at most what one read gets: in packet mode a status alone, or data behind a byte that says so.
    fn take(&self, sink: &mut Sink) -> Result<usize> {
        let link = &self.pair.link;
        let mut bytes = fallible::with_capacity(sink.remaining().min(BUFFER_SIZE + 1))?;
        let (status, header) = {
            let mut output = link.output.lock();
            let header = usize::from(output.packet_mode);
            let status = if output.packet_mode { core::mem::take(&mut output.status) } else { 0 };
            if status != 0 {
                bytes.push(status);
            } else {
                if output.packet_mode {
                    bytes.push(abi::TIOCPKT_DATA as u8);
                }
                let count = sink.remaining().min(BUFFER_SIZE + 1) - header;
                bytes.extend(output.bytes.iter().take(count));
            }
            (status, header)
        };
        let written = sink.write(&bytes);
        let mut output = link.output.lock();
        match written {
            // Nobody has seen it.
            Err(_) => output.status |= status,
            Ok(_) if status != 0 => {}
            Ok(count) => {
                // Fewer may be there: output can be flushed in between.
                let data = count.saturating_sub(header).min(output.bytes.len());
                output.bytes.drain(..data);
            }
        }
        drop(output);
        self.pair.tty.output.wake_all();
        written
    }
}

impl FileOps for Master {
    fn signals_readiness(&self) -> bool {
        true
    }

    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        let _reader = take_turn(&self.reading, file.nonblocking())?;
        if sink.remaining() == 0 {
            return Ok(0);
        }
        if !self.has_data() {
            if self.slave_gone() {
                return Err(Errno::EIO);
            }
            if file.nonblocking() {
                return Err(Errno::EAGAIN);
            }
            self.pair
                .link
                .readable
                .wait_event(None, || (self.has_data() || self.slave_gone()).then_some(()))?;
            if !self.has_data() {
                return Err(Errno::EIO);
            }
        }
        self.take(sink)
    }

    fn write_at(&self, file: &File, _: &mut u64, source: &mut Source) -> Result<usize> {
        let _writer = take_turn(&self.writing, file.nonblocking())?;
        let tty = &self.pair.tty;
        let mut done = 0;
        let mut buffer = [0u8; 512];
        while source.remaining() > 0 {
            // There may be gigabytes, and what does not fit into a line that has no end is lost, without a wait.
            sched::cond_resched();
            if done > 0 && process::current().signal_pending() {
                return Ok(done);
            }
            let want = source.remaining().min(buffer.len());
            let count = match source.read(&mut buffer[..want]) {
                Err(_) if done > 0 => return Ok(done),
                other => other?,
            };
            let mut taken = 0;
            while taken < count {
                taken += tty.receive(&buffer[taken..count]);
                if taken == count {
                    break;
                }
                let wait = if file.nonblocking() {
                    Err(Errno::EAGAIN)
                } else {
                    self.pair
                        .link
                        .writable
                        .wait_event(None, || tty.discipline.lock().has_room().then_some(()))
                        .map_err(Errno::from)
                };
                if let Err(error) = wait {
                    source.rewind(count - taken);
                    done += taken;
                    return if done > 0 { Ok(done) } else { Err(error) };
                }
            }
            done += count;
        }
        Ok(done)
    }

    fn poll(&self, _: &File) -> Events {
        let mut events = Events::empty();
        if self.has_data() {
            events |= Events::READABLE;
            if self.pair.link.output.lock().status != 0 {
                events |= Events::PRI;
            }
        }
        if self.slave_gone() {
            events |= Events::HUP;
        }
        if self.pair.tty.discipline.lock().has_room() {
            events |= Events::WRITABLE;
        }
        events
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.pair.link.readable);
        visit(&self.pair.link.writable);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn ioctl(&self, file: &File, command: u32, argument: usize) -> Result<usize> {
        match command {
            request::TIOCGPTN => write_user(argument, &self.pair.link.number)?,
            request::TIOCSPTLCK => {
                let lock: i32 = read_user(argument)?;
                self.pair.locked.store(lock != 0, Ordering::SeqCst);
            }
            request::TIOCGPTLCK => {
                write_user(argument, &i32::from(self.pair.locked.load(Ordering::SeqCst)))?;
            }
            request::TIOCPKT => {
                let on: i32 = read_user(argument)?;
                let mut output = self.pair.link.output.lock();
                output.packet_mode = on != 0;
                output.status = 0;
            }
            request::TIOCGPKT => {
                let on = self.pair.link.output.lock().packet_mode;
                write_user(argument, &i32::from(on))?;
            }
            request::TIOCSIG => {
                // What the terminal's own characters may send, and no more: those who run there may be another user's.
                let signal = argument as u32;
                if !matches!(signal, abi::SIGINT | abi::SIGQUIT | abi::SIGTSTP) {
                    return Err(Errno::EINVAL);
                }
                self.pair.tty.signal_foreground(signal);
            }
            request::TIOCGPTPEER => return self.open_peer(file, argument as u32),
            request::FIONREAD => {
                let count = self.pair.link.output.lock().bytes.len();
                write_user(argument, &(count as i32))?;
            }
            _ => {
                let tty = &self.pair.tty;
                let generation = tty.generation();
                let file = Opened { generation, readable: true, master: true, console: false };
                return ioctl::ioctl(tty, file, command, argument);
            }
        }
        Ok(0)
    }

    fn kernel_bytes(&self) -> u64 {
        MEMORY as u64
    }

    fn release(&self, _: &File) {
        self.pair.link.master_closed.store(true, Ordering::SeqCst);
        let dentry = self.pair.dentry.lock().take();
        // Dropped outside of the lock.
        drop(dentry);
        super::job::hang_up(&self.pair.tty);
        if self.pair.tty.opens.load(Ordering::SeqCst) == 0 {
            forget(&self.pair.link);
        }
    }
}

impl Master {
    /// TIOCGPTPEER: a descriptor for the terminal, whatever the caller's own root directory has at its name.
    fn open_peer(&self, master: &File, flags: u32) -> Result<usize> {
        let allowed = abi::O_ACCMODE | abi::O_NOCTTY | abi::O_CLOEXEC | abi::O_NONBLOCK;
        if flags & !allowed != 0 {
            return Err(Errno::EINVAL);
        }
        let mut start = Start::kernel();
        start.base = master.path().parent(&start.root)?;
        // Beside `/dev/ptmx` is the directory of the terminals; beside `/dev/pts/ptmx` they are themselves.
        let number = self.pair.link.number;
        let names = [alloc::format!("pts/{number}"), alloc::format!("{number}")];
        let places = names.iter().filter_map(|name| resolve(&start, name.as_bytes(), true).ok());
        let place = places.into_iter().find(|place| place.inode().rdev == self.pair.tty.device);
        let file = open_place(&start, &place.ok_or(Errno::ENODEV)?, flags)?;
        let limit = crate::fs::caller::descriptor_limit();
        let fd = crate::fs::caller::files().install(file, 0, limit, flags & abi::O_CLOEXEC != 0)?;
        Ok(fd as usize)
    }
}
