//! Programs that make as many files, areas, signals or IPC objects as they can: see [`exhaust`].

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use roundtable_programs::exhaust::{adjust, drop_rights, exhaust, exhaust_after};
use roundtable_programs::inet;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::Map;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{c_string, check};
use roundtable_programs::{Errno, seccomp, tests};

tests! { areas: 100, areas_of_huge_pages: 100, splits: 100, pipes: 100, open_files: 100, sockets: 100, messages: 100, rights: 100,
connections: 100, unread_connections: 100, unread_unix_connections: 100, epoll_items: 100, events: 100, timers: 100, signals: 100, segments: 100, memory_files: 100, names: 100,
symbolic_links: 100, directories: 100, mounts: 100, locks: 100, filters: 100, completions: 100 }

fn anonymous(count: usize) -> Result<usize, Errno> {
    let protection = if count.is_multiple_of(2) { libc::PROT_READ } else { libc::PROT_NONE };
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0)
    };
    if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(at as usize) }
}

fn areas() {
    exhaust(anonymous);
}

fn areas_of_huge_pages() {
    let file = roundtable_programs::file::Fd::memfd("huge", libc::MFD_HUGETLB).expect("memfd");
    file.truncate(1 << 30).expect("truncate");
    exhaust(|count| {
        let (pages, offset) = (1 + count % 400, count / 400 % 100);
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), pages << 21, 1, flags, file.raw(), (offset << 21) as i64)
        };
        if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(0) }
    });
}

/// One area that is cut into ever more.
fn splits() {
    let pages = 200_000;
    let map =
        Map::new(pages << 12, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0).expect("mmap");
    exhaust(|count| {
        let at = map.address + (((2 * count + 1) % pages) << 12);
        roundtable_programs::mem::mprotect(at, 4096, libc::PROT_NONE).map(|()| 0)
    });
}

fn pipe() -> Result<[i32; 2], Errno> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK) })?;
    Ok(ends)
}

fn write(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the bytes live through the call.
    check(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } as i64)
}

fn pipes() {
    exhaust(|_| write(pipe()?[1], &[1; 65536]));
}

fn open_files() {
    exhaust(|_| {
        // SAFETY: the text lives as long as the program.
        check(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) })
    });
}

fn socket_pair(kind: i32) -> Result<[i32; 2], Errno> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK, 0, ends.as_mut_ptr()) })?;
    Ok(ends)
}

fn sockets() {
    exhaust(|_| socket_pair(libc::SOCK_STREAM).map(|_| 0));
}

/// Small messages that nobody receives.
fn messages() {
    exhaust(|_| {
        let ends = socket_pair(libc::SOCK_SEQPACKET)?;
        loop {
            match write(ends[0], b"x") {
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(0),
                Err(error) => return Err(error),
            }
        }
    });
}

/// Sends descriptors, the socket's own among them.
fn send_rights(socket: i32, fds: &[i32]) -> Result<usize, Errno> {
    let space = 16 + fds.len() * 4;
    let mut control = vec![0u64; space.div_ceil(8)];
    let mut byte = 0u8;
    let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: an all-zero header is a valid one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = space;
    // SAFETY: the control buffer has room for one header and the descriptors.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = space;
        std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(header).cast(), fds.len());
        check(libc::sendmsg(socket, &message, 0) as i64)
    }
}

fn rights() {
    exhaust(|_| {
        let ends = socket_pair(libc::SOCK_STREAM)?;
        let fds = [ends[1]; 253];
        loop {
            match send_rights(ends[0], &fds) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        for end in ends {
            // SAFETY: takes an integer.
            check(unsafe { libc::close(end) })?;
        }
        Ok(0)
    });
}

/// Connections that nobody accepts.
fn connections() {
    exhaust(|count| {
        let name = format!("\0exhaustion-{}-{}", roundtable_programs::sys::pid(), count / 4000);
        // SAFETY: an all-zero address is a valid one; the name fits.
        let (address, len) = unsafe {
            let mut address: libc::sockaddr_un = std::mem::zeroed();
            address.sun_family = libc::AF_UNIX as u16;
            std::ptr::copy_nonoverlapping(name.as_ptr(), address.sun_path.as_mut_ptr().cast(), name.len());
            (address, (2 + name.len()) as u32)
        };
        // SAFETY: the address lives through the calls.
        unsafe {
            if count.is_multiple_of(4000) {
                let listener = check(libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0))? as i32;
                check(libc::bind(listener, (&raw const address).cast(), len))?;
                check(libc::listen(listener, 5000))?;
            }
            let client =
                check(libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0))? as i32;
            check(libc::connect(client, (&raw const address).cast(), len))?;
            // The connection stays in the listener's queue.
            check(libc::close(client))
        }
    });
}

/// Connections whose data waits for a listener that takes none, and whose clients are gone.
fn unread_connections() {
    let listener = Cell::new(None);
    exhaust(move |count| {
        if count.is_multiple_of(4000) {
            let fd = inet::stream(inet::V4);
            inet::bind(&fd, (inet::V4, 0).into())?;
            inet::listen(&fd, 5000)?;
            listener.set(Some(inet::name(&fd)?));
            std::mem::forget(fd);
        }
        let client = inet::stream(inet::V4);
        inet::connect(&client, listener.get().unwrap())?;
        // SAFETY: takes integers.
        check(unsafe { libc::fcntl(client.raw(), libc::F_SETFL, libc::O_NONBLOCK) })?;
        while write(client.raw(), &[1; 65536]).is_ok() {}
        Ok(0)
    });
}

fn unread_unix_connections() {
    let listener = RefCell::new(None);
    exhaust(move |count| {
        if count.is_multiple_of(4000) {
            let name = format!("exhaustion-{}-{}", roundtable_programs::sys::pid(), count);
            let address = SocketAddr::from_abstract_name(name).expect("a name");
            let bound = UnixListener::bind_addr(&address).expect("bind");
            inet::listen(&bound, 5000)?;
            std::mem::forget(bound);
            listener.replace(Some(address));
        }
        let client = UnixStream::connect_addr(listener.borrow().as_ref().unwrap())
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        client.set_nonblocking(true).expect("nonblocking");
        while write(client.as_raw_fd(), &[1; 65536]).is_ok() {}
        Ok(0)
    });
}

fn epoll_items() {
    exhaust(|count| {
        // Each member has an instance of its own.
        const EPOLL: i32 = 20_000;
        if count == 0 {
            // SAFETY: takes integers.
            unsafe {
                let epoll = check(libc::epoll_create1(0))? as i32;
                check(libc::dup2(epoll, EPOLL))?;
            }
        }
        // SAFETY: takes integers.
        let event = check(unsafe { libc::eventfd(1, libc::EFD_NONBLOCK) })? as i32;
        let mut interest = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: the structure lives through the call.
        check(unsafe { libc::epoll_ctl(EPOLL, libc::EPOLL_CTL_ADD, event, &mut interest) })
    });
}

fn events() {
    exhaust(|count| {
        // SAFETY: takes integers, or a set that lives through the call.
        check(unsafe {
            match count % 3 {
                0 => libc::eventfd(0, 0),
                1 => libc::timerfd_create(libc::CLOCK_MONOTONIC, 0),
                _ => {
                    let mut set: libc::sigset_t = std::mem::zeroed();
                    libc::sigemptyset(&mut set);
                    libc::signalfd(-1, &set, 0)
                }
            }
        })
    });
}

fn timers() {
    exhaust(|_| {
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: the identifier is written.
        check(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, std::ptr::null_mut(), &mut timer) })?;
        let hour = libc::timespec { tv_sec: 3600, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: hour, it_value: hour };
        // SAFETY: the setting lives through the call.
        check(unsafe { libc::timer_settime(timer, 0, &setting, std::ptr::null_mut()) })
    });
}

fn signals() {
    exhaust(|count| {
        let signal = libc::SIGRTMIN();
        // SAFETY: the set is filled first; the rest takes integers.
        unsafe {
            if count == 0 {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&mut set);
                libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            }
            check(libc::sigqueue(libc::getpid(), signal, libc::sigval { sival_ptr: std::ptr::null_mut() }))
        }
    });
}

/// SysV segments stay when their maker is gone, so they are refused before anybody is killed.
fn segments() {
    exhaust(|_| {
        // SAFETY: takes integers.
        let id = check(unsafe { libc::shmget(libc::IPC_PRIVATE, 1 << 20, 0o600) })?;
        // SAFETY: a new mapping at the kernel's choice.
        let at = unsafe { libc::shmat(id as i32, std::ptr::null(), 0) };
        // SAFETY: takes integers; gone with its last mapping.
        check(unsafe { libc::shmctl(id as i32, libc::IPC_RMID, std::ptr::null_mut()) })?;
        if at as isize == -1 { Err(Errno::last()) } else { Ok(0) }
    });
}

fn memory_files() {
    exhaust(|_| {
        // SAFETY: the text lives as long as the program.
        let file = check(unsafe { libc::memfd_create(c"some".as_ptr(), 0) })? as i32;
        write(file, b"one page")
    });
}

/// A directory that everybody may write to; removed when dropped.
struct Scratch(String);

impl Scratch {
    fn new() -> Scratch {
        let path = format!("/tmp/exhaustion-{}", roundtable_programs::sys::pid());
        std::fs::create_dir(&path).expect("mkdir");
        // SAFETY: the text lives through the call.
        check(unsafe { libc::chmod(c_string(&path).as_ptr(), 0o777) }).expect("chmod");
        Scratch(path)
    }

    fn name(&self, count: usize) -> CString {
        c_string(&format!("{}/{}-{count:0200}", self.0, roundtable_programs::sys::pid()))
    }
}

/// Things that stay: the crew must be refused, since killing it would free nothing.
fn exhaust_names(make: impl Fn(&CString) -> Result<usize, Errno>) {
    let scratch = Scratch::new();
    let clean_up = || std::fs::remove_dir_all(&scratch.0).expect("remove");
    exhaust_after(|| drop_rights(0), |count| make(&scratch.name(count)), clean_up);
}

fn names() {
    exhaust_names(|name| {
        // SAFETY: the text lives through the call.
        let file = check(unsafe { libc::open(name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600) })?;
        // SAFETY: takes an integer.
        check(unsafe { libc::close(file as i32) })
    });
}

fn symbolic_links() {
    let target = CString::new(vec![b'x'; 4000]).unwrap();
    exhaust_names(|name| {
        // SAFETY: the texts live through the call.
        check(unsafe { libc::symlink(target.as_ptr(), name.as_ptr()) })
    });
}

fn directories() {
    exhaust_names(|name| {
        // SAFETY: the text lives through the call.
        check(unsafe { libc::mkdir(name.as_ptr(), 0o700) })
    });
}

/// By a privileged user: nobody else may. They stay, and are undone here.
fn mounts() {
    let scratch = Scratch::new();
    let path = c_string(&scratch.0);
    let made = Shared::new();
    let mount = |count| {
        // The search for what is mounted where takes longer with each.
        if count == 100 {
            return Err(Errno::E2BIG);
        }
        // SAFETY: the texts live through the call.
        let result = check(unsafe {
            libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null())
        });
        result.inspect(|_| _ = made.add(0))
    };
    let clean_up = || {
        for _ in 0..made.get(0) {
            // SAFETY: the text lives through the call.
            check(unsafe { libc::umount2(path.as_ptr(), 0) }).expect("umount");
        }
    };
    exhaust_after(|| adjust("self", 0), mount, clean_up);
    std::fs::remove_dir(&scratch.0).expect("rmdir");
}

fn locks() {
    let file = roundtable_programs::file::Fd::temporary();
    exhaust(|count| {
        // SAFETY: an all-zero structure is a valid one, and it lives through the call.
        unsafe {
            let mut lock: libc::flock = std::mem::zeroed();
            lock.l_type = libc::F_RDLCK as i16;
            lock.l_start = 2 * count as i64;
            lock.l_len = 1;
            check(libc::fcntl(file.raw(), libc::F_SETLK, &lock))
        }
    });
}

/// Threads, each with as long a chain of filters as one may have.
fn filters() {
    exhaust(|_| {
        let (told, hear) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
            let mut filter = vec![seccomp::op(seccomp::LOAD, 0); 4095];
            filter.push(seccomp::op(seccomp::RETURN, seccomp::ALLOW));
            seccomp::no_new_privileges();
            let refused = (0..7).find_map(|_| seccomp::install(&filter, 0).err());
            drop(filter);
            let _ = told.send(refused);
            loop {
                std::thread::park();
            }
        });
        thread.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        hear.recv().expect("a thread").map_or(Ok(0), Err)
    });
}

/// Contexts of io_setup(2), full of events that nobody fetches.
fn completions() {
    let file = roundtable_programs::file::Fd::temporary();
    exhaust(|_| {
        const FSYNC: u64 = 2;
        /// Each has room for so many at the least.
        const ROOM: usize = 128;
        let request = [0u64, 0, FSYNC | (file.raw() as u64) << 32, 0, 0, 0, 0, 0];
        let requests = [&raw const request; ROOM];
        let mut id = 0usize;
        call(libc::SYS_io_setup, [1, &raw mut id as usize, 0, 0, 0, 0])?;
        call(libc::SYS_io_submit, [id, ROOM, requests.as_ptr() as usize, 0, 0, 0])
    });
}
