//! The guest's network: QEMU's user network, and what of the host's ports leads into the guest.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use guest_link::job;

use crate::initramfs::Initramfs;

/// The guest's address, and where it finds the host: what QEMU gives to the first guest of a user network.
const PARAMETER: &str = "ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off";
/// QEMU's server of names, which asks the host's.
const NAMES: &str = "nameserver 10.0.2.3\n";

/// A port's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// A port of the host's that leads to one of the guest's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    protocol: Protocol,
    /// Only this machine reaches it, unless another address is given.
    address: String,
    host: u16,
    guest: u16,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let explain = || format!("{text:?} is not [ADDRESS:]HOSTPORT:PORT, with /udp behind it for UDP");
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(explain()),
        };
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0).ok_or_else(explain);
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(explain)?;
        let (address, host) = rest.rsplit_once(':').unwrap_or(("127.0.0.1", rest));
        // QEMU splits its option at commas.
        address.parse::<std::net::Ipv4Addr>().map_err(|_| explain())?;
        Ok(Forward { protocol, address: address.into(), host: port(host)?, guest: port(guest)? })
    }
}

/// A card in the guest, on a network of its own behind which is the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// What leads from the host into the guest.
    pub forwards: Vec<Forward>,
}

impl Network {
    /// QEMU's words for it.
    pub fn arguments(&self) -> Vec<String> {
        let mut backend = String::from("user,id=net0,ipv6=off");
        for Forward { protocol, address, host, guest } in &self.forwards {
            let protocol = if *protocol == Protocol::Tcp { "tcp" } else { "udp" };
            backend.push_str(&format!(",hostfwd={protocol}:{address}:{host}-:{guest}"));
        }
        // Without the card's own program for booting from the network, which QEMU has in another package.
        ["-netdev", &backend, "-device", "virtio-net-pci,netdev=net0,romfile="].map(String::from).to_vec()
    }

    /// The kernel's parameter, by which our kernel or init sets the card up.
    pub fn parameter(&self) -> String {
        PARAMETER.into()
    }
}

/// What the guest's programs find names by, unless they brought a file of their own.
pub fn add_names(initramfs: &mut Initramfs) {
    if !initramfs.has("/etc/resolv.conf") {
        initramfs.add_bytes("/etc/resolv.conf", 0o644, NAMES);
    }
}

/// The modules by which Debian's kernel knows the card. `kernel`: the file of that kernel, beside which they are.
pub fn add_modules(initramfs: &mut Initramfs, kernel: &Path) -> Result<()> {
    let folder = kernel.with_file_name("modules");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut count = 0;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a module's name")?;
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        initramfs.add_bytes(&format!("{}/{name}", job::MODULES_PATH), 0o400, bytes);
        count += 1;
    }
    ensure!(count > 0, "{} is empty", folder.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qemu(text: &str) -> String {
        Network { forwards: vec![text.parse().unwrap()] }.arguments().remove(1)
    }

    #[test]
    fn ports_are_forwarded_from_this_machine_alone_unless_told() {
        assert_eq!(qemu("5432:5433"), "user,id=net0,ipv6=off,hostfwd=tcp:127.0.0.1:5432-:5433");
        assert_eq!(qemu("0.0.0.0:80:8080"), "user,id=net0,ipv6=off,hostfwd=tcp:0.0.0.0:80-:8080");
        assert_eq!(qemu("53:53/udp"), "user,id=net0,ipv6=off,hostfwd=udp:127.0.0.1:53-:53");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "80", "80:", ":80", "0:80", "80:0", "65536:1", "1:2/sctp", "a,b=c:1:2", "x:1:2"] {
            assert!(text.parse::<Forward>().is_err(), "{text}");
        }
    }
}
