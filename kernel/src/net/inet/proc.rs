//! `/proc/net`: what netstat(8), ss(8) and servers read.

use alloc::string::String;
use core::fmt::Write;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::sync::atomic::Ordering;

use super::address::Family;
use super::card;
use super::interface;
use super::ports::{self, Protocol};
use super::{Role, Socket};
use crate::errno::Result;
use crate::fs::proc::{register, sysctl};
use crate::memory::fallible::Text;
use crate::namespaces::Network;

/// Registers the files.
pub fn init() -> Result<()> {
    for (name, protocol, family) in [
        ("tcp", Protocol::Tcp, Family::V4),
        ("tcp6", Protocol::Tcp, Family::V6),
        ("udp", Protocol::Udp, Family::V4),
        ("udp6", Protocol::Udp, Family::V6),
    ] {
        register(&alloc::format!("net/{name}"), 0o444, move || sockets(protocol, family))?;
    }
    register("net/dev", 0o444, || Ok(dev()))?;
    register("net/if_inet6", 0o444, || {
        let up = Network::current().loopback_is_up();
        Ok(if up { "00000000000000000000000000000001 01 80 10 80       lo\n" } else { "" }.into())
    })?;
    register("net/route", 0o444, || {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT";
        Ok(alloc::format!("{head:<127}\n{}", routes()))
    })?;
    register("net/sockstat", 0o444, sockstat)?;
    sysctl::register_read_only("net/ipv4/ip_local_port_range", || {
        Ok(alloc::format!("{}\t{}", ports::EPHEMERAL.start(), ports::EPHEMERAL.end()))
    })?;
    sysctl::register_read_only("net/ipv4/ip_unprivileged_port_start", || {
        Ok(alloc::format!("{}", ports::FIRST_UNPRIVILEGED))
    })?;
    sysctl::register_read_only("net/ipv6/bindv6only", || Ok("0".into()))?;
    sysctl::register_read_only("net/ipv6/conf/all/disable_ipv6", || Ok("0".into()))?;
    sysctl::register_read_only("net/ipv4/tcp_rmem", || Ok("4096\t131072\t6291456".into()))?;
    sysctl::register_read_only("net/ipv4/tcp_wmem", || Ok("4096\t131072\t4194304".into()))
}

/// An address as these files spell it: words of the machine's byte order, and the port.
fn hexadecimal(endpoint: SocketAddr, family: Family) -> String {
    let mut out = String::new();
    let mut words = |octets: &[u8]| {
        for word in octets.chunks_exact(4) {
            // Writing to a string does not fail.
            let _ = write!(out, "{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    };
    match (family, endpoint.ip()) {
        (Family::V4, IpAddr::V4(ip)) => words(&ip.octets()),
        (_, IpAddr::V4(ip)) => words(&ip.to_ipv6_mapped().octets()),
        (_, IpAddr::V6(ip)) => words(&ip.octets()),
    }
    let _ = write!(out, ":{:04X}", endpoint.port());
    out
}

fn sockets(protocol: Protocol, family: Family) -> Result<String> {
    let address = if family == Family::V4 {
        "local_address rem_address  "
    } else {
        "local_address                         remote_address                       "
    };
    let tail = if protocol == Protocol::Udp { " ref pointer drops" } else { "" };
    let mut out = Text::new();
    let head = alloc::format!(
        "  sl  {address} st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode{tail}"
    );
    // Writing to a text does not fail before its end.
    let _ = writeln!(out, "{head:<149}");
    let mut line = 0;
    ports::each_holder(&Network::current(), protocol, &mut |socket: &Socket| {
        if socket.family != family {
            return;
        }
        let (local, peer, waiting) = {
            let state = socket.state.lock();
            let waiting = match &state.role {
                Role::Listening { pending, .. } => pending.len(),
                _ => 0,
            };
            (state.local, state.peer.unwrap_or(SocketAddr::new(family.any(), 0)), waiting)
        };
        let queued = match protocol {
            Protocol::Tcp => socket.bytes.lock().len() + waiting,
            Protocol::Udp => socket.datagrams.lock().held(),
        };
        let state = if protocol == Protocol::Tcp { socket.tcp_state() } else { 7 };
        let text = alloc::format!(
            "{line:4}: {} {} {state:02X} {:08X}:{queued:08X} 00:00000000 00000000 {:5}        0 {} 1 0000000000000000 100 0 0 10 0",
            hexadecimal(local, family),
            hexadecimal(peer, family),
            0,
            socket.uid,
            socket.inode.load(Ordering::Relaxed),
        );
        let _ = writeln!(out, "{text:<149}");
        line += 1;
    })?;
    out.into_string()
}

fn dev() -> String {
    let mut out = String::from(
        "Inter-|   Receive                                                |  Transmit\n \
         face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n",
    );
    for interface in interface::all(&Network::current()) {
        // On the loopback bytes are not counted: they go from process to process without an interface.
        let directions = if interface.name == card::NAME {
            [card::COUNTERS.receive.read(), card::COUNTERS.send.read()]
        } else {
            [[0; 3]; 2]
        };
        let [[received, packets, lost], [sent, sent_packets, not_sent]] = directions;
        let _ = writeln!(
            out,
            "{:>6}: {received:7} {packets:7}    0 {lost:4}    0     0          0         0 {sent:8} {sent_packets:7}    0 {not_sent:4}    0     0       0          0",
            interface.name
        );
    }
    out
}

/// The ways beyond this machine, of `/proc/net/route`: by the gateway, and on the line.
fn routes() -> String {
    const UP: u32 = 1;
    const GATEWAY: u32 = 2;
    let mut out = String::new();
    let Some(setup) = card::setup().filter(|_| Network::current().is_first()) else { return out };
    let word = |ip: Ipv4Addr| u32::from_ne_bytes(ip.octets());
    let none = Ipv4Addr::UNSPECIFIED;
    let mut line = |to: Ipv4Addr, gateway: Ipv4Addr, flags: u32, mask: Ipv4Addr| {
        let text = alloc::format!(
            "{}\t{:08X}\t{:08X}\t{flags:04X}\t0\t0\t0\t{:08X}\t0\t0\t0",
            card::NAME,
            word(to),
            word(gateway),
            word(mask)
        );
        // Writing to a string does not fail.
        let _ = writeln!(out, "{text:<127}");
    };
    if let Some(gateway) = setup.gateway {
        line(none, gateway, UP | GATEWAY, none);
    }
    line(setup.network(), none, UP, setup.mask());
    out
}

fn sockstat() -> Result<String> {
    let count = |protocol| -> Result<usize> {
        let mut count = 0;
        ports::each_holder(&Network::current(), protocol, &mut |socket: &Socket| {
            count += usize::from(socket.family == Family::V4);
        })?;
        Ok(count)
    };
    let (tcp, udp) = (count(Protocol::Tcp)?, count(Protocol::Udp)?);
    Ok(alloc::format!(
        "sockets: used {}\nTCP: inuse {tcp} orphan 0 tw 0 alloc {tcp} mem 0\nUDP: inuse {udp} mem 0\nUDPLITE: inuse 0\nRAW: inuse 0\nFRAG: inuse 0 memory 0\n",
        tcp + udp
    ))
}
