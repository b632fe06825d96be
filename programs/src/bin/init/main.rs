//! PID 1 of the guests that the host command starts, on either kernel.
//!
//! It mounts what programs expect, runs the job that the host left in the initramfs, reports how that ended
//! in a frame on the console and powers the machine off. It uses nothing but Linux interfaces.

mod network;
mod terminal;
mod volumes;

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest_link::user::{self, User};
use guest_link::{Ending, Frame, Input, Job, Test, Work, job, relay};
use terminal::Terminal;

fn main() {
    let mut init = match Init::new() {
        Ok(init) => init,
        Err(error) => {
            // No key, so no frame: the host sees a machine that went down without a word, and this line.
            eprintln!("init: {}: {error}", job::PATH);
            power_off();
        }
    };
    init.mount_all();
    if let Err(note) = network::raise() {
        init.report(Frame::Note(note));
    }
    init.console_level = console_level().unwrap_or(init.console_level);
    init.set_up_console();
    init.report(Frame::Start);
    if let Err(error) = init.mount_volumes() {
        let ending = Ending::NotStarted(error.raw_os_error().unwrap_or(libc::EIO));
        init.report(Frame::Exit(ending));
        init.report(Frame::Exit(ending));
        power_off();
    }
    match init.job.work.clone() {
        Work::Run { path, arguments } => {
            let ending = init.run(&path, &arguments);
            // Twice: a kernel message may fall into one of them.
            init.report(Frame::Exit(ending));
            init.report(Frame::Exit(ending));
        }
        Work::Tests(tests) => {
            let pools = pools();
            for (index, test) in tests.iter().enumerate() {
                init.test(index, test);
                pools.iter().for_each(restore_pool);
            }
            init.report(Frame::Exit(Ending::Code(0)));
            init.report(Frame::Exit(Ending::Code(0)));
        }
    }
    power_off();
}

struct Init {
    job: Job,
    console: File,
    /// The job's standard input, when it is a file.
    input: Option<File>,
    /// The kernel's messages up to this level belong on the console.
    console_level: i32,
}

impl Init {
    fn new() -> io::Result<Init> {
        let bytes = fs::read(job::PATH)?;
        let job = Job::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // The key in it is not for the job to read; an open input file needs no name.
        let input = (job.input == Input::File).then(|| File::open(job::INPUT_PATH)).transpose()?;
        network::load_modules();
        fs::remove_dir_all(Path::new(job::PATH).parent().expect("the job file lies in a folder"))?;
        let console = File::from(std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned()?);
        Ok(Init { job, console, input, console_level: 7 })
    }

    /// Sends a frame to the host, with the kernel's log silenced so that it stays whole.
    fn report(&mut self, frame: Frame) {
        set_console_level(1);
        let bytes = frame.encode(&self.job.key);
        let sent = self.console.write_all(&bytes);
        drain(&self.console);
        set_console_level(self.console_level);
        if let Err(error) = sent {
            eprintln!("init: cannot write to the console: {error}");
        }
    }

    fn mount_all(&mut self) {
        self.mount("devtmpfs", "/dev", "mode=0755");
        self.mount("proc", "/proc", "");
        // What every system's /dev has, and devtmpfs has not.
        for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
            let link = format!("/dev/{name}");
            if let Err(error) = std::os::unix::fs::symlink(format!("/proc/self/fd{target}"), &link)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                self.report(Frame::Note(format!("{link}: {error}")));
            }
        }
        self.mount("sysfs", "/sys", "");
        self.mount("cgroup2", "/sys/fs/cgroup", "");
        self.mount("devpts", "/dev/pts", "mode=0620,ptmxmode=0666");
        self.mount("tmpfs", "/dev/shm", "mode=1777");
        self.mount("tmpfs", "/tmp", "mode=1777");
        self.mount("tmpfs", "/run", "mode=0755");
        self.mount("hugetlbfs", "/mnt/huge", "pagesize=2M,mode=1777");
        if Path::new("/sys/kernel/mm/hugepages/hugepages-1048576kB").exists() {
            self.mount("hugetlbfs", "/mnt/huge-1g", "pagesize=1G,mode=1777");
        }
    }

    /// Without one of them the job would do its work in the wrong place.
    fn mount_volumes(&mut self) -> io::Result<()> {
        let is_owned = self.job.volumes.iter().any(|volume| volume.owner.is_some());
        let user = if is_owned { self.user()? } else { None };
        for volume in self.job.volumes.clone() {
            if let Err((what, error)) = volumes::mount(&volume, user.as_ref()) {
                self.report(Frame::Note(format!("{what}: {error}")));
                return Err(error);
            }
        }
        Ok(())
    }

    fn mount(&mut self, kind: &str, target: &str, options: &str) {
        // What the user put there is not to be hidden.
        if kind == "tmpfs" && fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some()) {
            return;
        }
        let c = |text: &str| CString::new(text).expect("the mount table has no NUL");
        let made = fs::create_dir_all(target);
        let (kind_c, target_c, options_c) = (c(kind), c(target), c(options));
        // SAFETY: all four pointers are to NUL-terminated strings that outlive the call.
        let result = unsafe {
            libc::mount(kind_c.as_ptr(), target_c.as_ptr(), kind_c.as_ptr(), 0, options_c.as_ptr().cast())
        };
        if result != 0 {
            let error = io::Error::last_os_error();
            // The kernel may have mounted devtmpfs itself.
            if error.raw_os_error() != Some(libc::EBUSY) {
                let made = made.err().map(|error| format!(" (mkdir: {error})")).unwrap_or_default();
                self.report(Frame::Note(format!("mount {kind} on {target}: {error}{made}")));
            }
        }
    }

    /// Makes the console a line that changes no byte, of the size of the user's terminal.
    fn set_up_console(&mut self) {
        let fd = self.console.as_raw_fd();
        // SAFETY: a termios of zero bytes is valid, and tcgetattr fills it.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `settings` is a termios that lives through the call.
        if unsafe { libc::tcgetattr(fd, &mut settings) } != 0 {
            self.report(Frame::Note(format!("tcgetattr: {}", io::Error::last_os_error())));
            return;
        }
        settings.c_iflag &= !(libc::ICRNL | libc::INLCR | libc::IXON | libc::ISTRIP);
        settings.c_oflag &= !libc::OPOST;
        settings.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
        settings.c_cc[libc::VMIN] = 1;
        settings.c_cc[libc::VTIME] = 0;
        // SAFETY: `settings` is a termios that lives through the call.
        if unsafe { libc::tcsetattr(fd, libc::TCSADRAIN, &settings) } != 0 {
            self.report(Frame::Note(format!("tcsetattr: {}", io::Error::last_os_error())));
        }
        if let Some((rows, columns)) = self.job.window
            && let Err(error) = terminal::set_window_size(&self.console, rows, columns)
        {
            self.report(Frame::Note(format!("TIOCSWINSZ: {error}")));
        }
    }

    fn run(&mut self, path: &[u8], arguments: &[Vec<u8>]) -> Ending {
        self.try_run(path, arguments)
            .unwrap_or_else(|error| Ending::NotStarted(error.raw_os_error().unwrap_or(libc::EIO)))
    }

    fn try_run(&mut self, path: &[u8], arguments: &[Vec<u8>]) -> io::Result<Ending> {
        let user = self.user()?;
        let mut command = self.command(path, arguments);
        let terminal = match self.job.input {
            Input::Terminal => Some(Terminal::open(self.job.window)?),
            _ => None,
        };
        match self.job.input {
            Input::Null => command.stdin(Stdio::null()),
            Input::File => command.stdin(self.input.take().map_or_else(Stdio::null, Stdio::from)),
            Input::Relay => command.stdin(self.start_relay()?),
            Input::Terminal => &mut command,
        };
        if let Some(Terminal { side, .. }) = &terminal {
            command.stdin(side.try_clone()?).stdout(side.try_clone()?).stderr(side.try_clone()?);
        }
        let controlling = terminal.is_some();
        if let Some(user) = &user {
            let tty = terminal.as_ref().map_or(&self.console, |terminal| &terminal.side);
            // As login does: the job may open its terminal by name.
            std::os::unix::fs::fchown(tty, Some(user.uid), None)?;
        }
        let begin = move || {
            new_session(controlling)?;
            user.as_ref().map_or(Ok(()), become_user)
        };
        // SAFETY: the closure makes system calls only, which is allowed between fork and exec.
        unsafe { command.pre_exec(begin) };
        let child = spawn(&mut command)?;
        // It holds the ends of pipes that only the job shall have.
        drop(command);
        if let Some(terminal) = terminal {
            match self.carry(&terminal, child) {
                Ok(ending) => return Ok(ending),
                // The job may yet come to its end, which is what matters.
                Err(error) => self.report(Frame::Note(format!("the job's terminal: {error}"))),
            }
        }
        Ok(wait_for(child, None).unwrap_or(Ending::TimedOut))
    }

    /// Whom the job runs as; their home and name are in its environment where it does not say otherwise.
    fn user(&mut self) -> io::Result<Option<User>> {
        let Some(wanted) = &self.job.user else { return Ok(None) };
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let Some(user) = user::find(wanted, &text("/etc/passwd"), &text("/etc/group")) else {
            self.report(Frame::Note(format!("there is no user {wanted} in the guest's /etc/passwd")));
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        if let Some((name, home)) = &user.entry {
            // At the front: what the host or the image sets comes later, and counts.
            let is_base = |variable: &Vec<u8>| variable == b"HOME=/root" || variable == b"USER=root";
            self.job.environment.retain(|variable| !is_base(variable));
            let own = [format!("HOME={home}"), format!("USER={name}")].map(String::into_bytes);
            self.job.environment.splice(0..0, own);
        }
        Ok(Some(user))
    }

    fn test(&mut self, index: usize, test: &Test) {
        self.report(Frame::TestStart { index });
        let start = Instant::now();
        let mut command = self.command(&test.path, &test.arguments);
        command.stdin(Stdio::null());
        // SAFETY: the closure makes system calls only, which is allowed between fork and exec.
        unsafe { command.pre_exec(|| new_session(false)) };
        let ending = match spawn(&mut command) {
            Ok(child) => {
                let limit = start + Duration::from_secs(test.limit.into());
                wait_for(child, Some(limit)).unwrap_or(Ending::TimedOut)
            }
            Err(error) => Ending::NotStarted(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        let milliseconds = start.elapsed().as_millis() as u64;
        kill_the_rest();
        self.report(Frame::TestEnd { index, ending, milliseconds });
    }

    fn command(&self, path: &[u8], arguments: &[Vec<u8>]) -> Command {
        let mut command = Command::new(OsStr::from_bytes(path));
        let mut arguments = arguments.iter().map(|argument| OsStr::from_bytes(argument));
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command.args(arguments).current_dir(OsStr::from_bytes(&self.job.directory)).env_clear();
        for variable in &self.job.environment {
            let cut = variable.iter().position(|&byte| byte == b'=').unwrap_or(variable.len());
            let value = variable.get(cut + 1..).unwrap_or_default();
            command.env(OsString::from_vec(variable[..cut].to_vec()), OsString::from_vec(value.to_vec()));
        }
        command
    }

    /// Starts the process that feeds the job's standard input; gives the end to read from.
    fn start_relay(&mut self) -> io::Result<OwnedFd> {
        let (read, write) = io::pipe()?;
        // SAFETY: this process has one thread, so the child may go on as the parent would.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(read);
                self.relay(File::from(OwnedFd::from(write)));
                std::process::exit(0);
            }
            _ => Ok(read.into()),
        }
    }

    fn relay(&mut self, mut job: File) {
        let mut unstuff = relay::Unstuff::default();
        let mut buffer = [0; 1024];
        let mut job_reads = true;
        let mut taken = 0;
        while !unstuff.ended() {
            let read = match io::stdin().lock().read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.report(Frame::Note(format!("console: {error}"))),
            };
            let bytes = unstuff.feed(&buffer[..read]);
            // A job that does not read its input is no error; the host's window must still move on.
            job_reads = job_reads && job.write_all(&bytes).is_ok();
            taken += read;
            // A frame costs more than the bytes that it is about; half the window keeps the line busy.
            if taken >= relay::WINDOW / 2 {
                self.report(Frame::Credit(std::mem::take(&mut taken)));
            }
        }
    }
}

/// Starts a command; gives its process ID. The standard library's own way asks the kernel for sockets and
/// pidfds, and init shall report on kernels that have neither.
fn spawn(command: &mut Command) -> io::Result<i32> {
    let (mut read, mut write) = io::pipe()?;
    // SAFETY: this process has one thread, so the child may go on as the parent would.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(read);
            let errno = command.exec().raw_os_error().unwrap_or(libc::EIO);
            // Without a reader there is nobody to tell.
            let _ = write.write_all(&errno.to_ne_bytes());
            std::process::exit(127);
        }
        child => {
            drop(write);
            let mut errno = [0; 4];
            match read.read_exact(&mut errno) {
                // exec has closed the pipe.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(child),
                Err(error) => Err(error),
                Ok(()) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
            }
        }
    }
}

fn new_session(controlling: bool) -> io::Result<()> {
    // SAFETY: the calls below take integers, and a signal set on this stack that sigemptyset fills.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        if libc::setsid() == -1 {
            return Err(io::Error::last_os_error());
        }
        if controlling && libc::ioctl(0, libc::TIOCSCTTY, 0) == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Gives up root's identity for a user's.
fn become_user(user: &User) -> io::Result<()> {
    // SAFETY: the list of groups lives through the call; the others take integers.
    let failed = unsafe {
        libc::setgroups(user.groups.len(), user.groups.as_ptr()) == -1
            || libc::setgid(user.gid) == -1
            || libc::setuid(user.uid) == -1
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How the process ended that waitpid told of.
fn ending_of(status: i32) -> Ending {
    if libc::WIFSIGNALED(status) {
        Ending::Signal(libc::WTERMSIG(status))
    } else {
        Ending::Code(libc::WEXITSTATUS(status))
    }
}

/// Blocks SIGCHLD; gives the set of it alone.
fn block_child_signal() -> libc::sigset_t {
    // SAFETY: a signal set on this stack that sigemptyset fills before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    }
}

/// Reaps whatever ends until `pid` does; `None` when it has not by the limit.
fn wait_for(pid: i32, limit: Option<Instant>) -> Option<Ending> {
    let child_signal = block_child_signal();
    loop {
        let options = if limit.is_some() { libc::WNOHANG } else { 0 };
        let mut status = 0;
        // SAFETY: `status` lives through the call.
        let ended = unsafe { libc::waitpid(-1, &mut status, options) };
        if ended == pid {
            return Some(ending_of(status));
        }
        if ended > 0 {
            continue;
        }
        let Some(limit) = limit else { continue };
        let left = limit.checked_duration_since(Instant::now())?;
        let left = libc::timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        // SIGCHLD is blocked, so one that comes between the waitpid above and this call is kept for it.
        // SAFETY: the set and the time live through the call; no siginfo is asked for.
        let signal = unsafe { libc::sigtimedwait(&child_signal, std::ptr::null_mut(), &left) };
        if signal == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) {
            return None;
        }
    }
}

/// Ends every other process and reaps those whose parent is gone.
fn kill_the_rest() {
    let mut status = 0;
    // SAFETY: the calls take integers and a status that lives through them.
    unsafe {
        libc::kill(-1, libc::SIGKILL);
        while libc::waitpid(-1, &mut status, 0) > 0 {}
    }
}

type Pool = (std::path::PathBuf, String);

/// The huge-page pools' settings, so that a test that dies half-way does not take the next one along.
fn pools() -> Vec<Pool> {
    let Ok(sizes) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    sizes
        .flatten()
        .flat_map(|size| {
            ["nr_hugepages", "nr_overcommit_hugepages"].map(|file| {
                let path = size.path().join(file);
                fs::read_to_string(&path).ok().map(|value| (path, value))
            })
        })
        .flatten()
        .collect()
}

fn restore_pool((path, value): &Pool) {
    if fs::read_to_string(path).is_ok_and(|now| now != *value)
        && let Err(error) = fs::write(path, value)
    {
        println!("init: {}: {error}", path.display());
    }
}

/// What the kernel command line, or its default, has made of it.
fn console_level() -> Option<i32> {
    fs::read_to_string("/proc/sys/kernel/printk").ok()?.split_whitespace().next()?.parse().ok()
}

fn set_console_level(level: i32) {
    const CONSOLE_LEVEL: i32 = 8;
    // A kernel without this call has a log that cannot be silenced; then frames take their chance.
    // SAFETY: this action takes no buffer.
    unsafe { libc::klogctl(CONSOLE_LEVEL, std::ptr::null_mut(), level) };
}

fn drain(console: &File) {
    // SAFETY: tcdrain takes a descriptor, which `console` keeps open.
    unsafe { libc::tcdrain(console.as_raw_fd()) };
}

fn power_off() -> ! {
    // SAFETY: these calls take no pointers. Power-off does not return.
    unsafe {
        libc::sync();
        libc::tcdrain(1);
        libc::reboot(libc::RB_POWER_OFF);
    }
    panic!("power-off: {}", io::Error::last_os_error());
}
