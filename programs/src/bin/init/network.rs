//! The interfaces: up from the start, as every system's first scripts leave them.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use guest_link::job;

/// Loads what the host has put there for the machine's devices. Kernels that know the devices get nothing.
pub fn load_modules() {
    /// `MODULE_INIT_COMPRESSED_FILE`.
    const COMPRESSED: libc::c_int = 4;
    let Ok(entries) = fs::read_dir(job::MODULES_PATH) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let loaded = File::open(&path).and_then(|file| {
            let parameters: &CStr = c"";
            // SAFETY: the parameters are a string that lives through the call.
            let result = unsafe {
                libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), COMPRESSED)
            };
            if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
        if let Err(error) = loaded {
            eprintln!("init: {}: {error}", path.display());
        }
    }
}

/// Brings up the way back to this machine, and the card that `ip=` on the kernel's command line is about where the kernel has not done so
/// itself. What fails is told in words.
pub fn raise() -> Result<(), String> {
    let socket = Socket::new().map_err(|error| format!("no socket: {error}"))?;
    socket.raise("lo").map_err(|error| format!("lo cannot be brought up: {error}"))?;
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let Some(text) = line.split_whitespace().find_map(|word| word.strip_prefix("ip=")) else { return Ok(()) };
    let fields: Vec<&str> = text.split(':').collect();
    let [ip, _, gateway, mask, _, name, ..] = fields[..] else {
        return Err(format!("ip={text}: what is that?"));
    };
    let parse = |text: &str| text.parse::<Ipv4Addr>().map_err(|error| format!("ip={text}: {error}"));
    let (ip, gateway, mask) = (parse(ip)?, parse(gateway)?, parse(mask)?);
    if socket.has_address(name) {
        return Ok(());
    }
    let set = || {
        socket.set_address(name, libc::SIOCSIFADDR, ip)?;
        socket.set_address(name, libc::SIOCSIFNETMASK, mask)?;
        socket.raise(name)?;
        socket.add_default_route(gateway)
    };
    set().map_err(|error| format!("{name} cannot be set up: {error}"))
}

struct Socket(OwnedFd);

fn request(name: &str) -> libc::ifreq {
    // SAFETY: a request of zero bytes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request
}

fn address(ip: Ipv4Addr) -> libc::sockaddr {
    let mut address = libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data: [0; 14] };
    // Behind the port, which is 0.
    for (to, from) in address.sa_data[2..6].iter_mut().zip(ip.octets()) {
        *to = from as libc::c_char;
    }
    address
}

impl Socket {
    fn new() -> io::Result<Socket> {
        // SAFETY: takes integers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is new, and nobody else's.
        Ok(Socket(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn ioctl<T>(&self, command: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: the caller's argument is what the command takes, and lives through the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command as _, std::ptr::from_mut(argument)) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn raise(&self, name: &str) -> io::Result<()> {
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    fn has_address(&self, name: &str) -> bool {
        self.ioctl(libc::SIOCGIFADDR, &mut request(name)).is_ok()
    }

    fn set_address(&self, name: &str, command: libc::c_ulong, ip: Ipv4Addr) -> io::Result<()> {
        let mut request = request(name);
        request.ifr_ifru.ifru_addr = address(ip);
        self.ioctl(command, &mut request)
    }

    fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: an entry of zero bytes is valid.
        let mut entry: libc::rtentry = unsafe { std::mem::zeroed() };
        entry.rt_dst = address(Ipv4Addr::UNSPECIFIED);
        entry.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
        entry.rt_gateway = address(gateway);
        entry.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        self.ioctl(libc::SIOCADDRT, &mut entry)
    }
}
