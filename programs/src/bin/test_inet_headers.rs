//! What ancillary data say of a datagram's header: ip(7), ipv6(7), RFC 3542.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use roundtable_programs::inet::{V4, V6, set};
use roundtable_programs::socket::{Entry, Message, receive, send_with};
use roundtable_programs::{Errno, tests};

tests! {
    nothing_unasked, hops_and_class_of_v4, hops_and_class_of_v6, addresses_of_both, mapped_addresses, wrong_wishes,
    values_of_one_packet, cut_entries, entries_of_others,
}

const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;

/// A receiver, and a sender that is connected to it.
fn connected(ip: IpAddr) -> (UdpSocket, UdpSocket) {
    let receiver = UdpSocket::bind((ip, 0)).unwrap();
    let sender = UdpSocket::bind((ip, 0)).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    (receiver, sender)
}

fn get(receiver: &UdpSocket, room: usize) -> Message {
    let mut buffer = [0; 10];
    let message = receive(receiver, &mut buffer, room, 0).unwrap();
    assert_eq!((message.count, &buffer[..1]), (1, &b"x"[..]));
    message
}

fn entry(level: i32, kind: i32, value: i32) -> Entry {
    (level, kind, value.to_ne_bytes().to_vec())
}

/// What one packet with these wishes brings.
fn through((receiver, sender): &(UdpSocket, UdpSocket), wishes: &[Entry]) -> Vec<Entry> {
    assert_eq!(send_with(sender, b"x", wishes), Ok(1));
    let message = get(receiver, 200);
    assert_eq!(message.flags & libc::MSG_CTRUNC, 0);
    message.control
}

fn nothing_unasked() {
    for ip in [V4, V6] {
        assert_eq!(through(&connected(ip), &[]), []);
    }
}

fn hops_and_class_of_v4() {
    let pair = connected(V4);
    set(&pair.0, IP, libc::IP_RECVTTL, 1).unwrap();
    assert_eq!(through(&pair, &[]), [entry(IP, libc::IP_TTL, 64)]);
    set(&pair.0, IP, libc::IP_RECVTOS, 1).unwrap();
    set(&pair.1, IP, libc::IP_TTL, 9).unwrap();
    set(&pair.1, IP, libc::IP_TOS, 0x10).unwrap();
    assert_eq!(through(&pair, &[]), [entry(IP, libc::IP_TTL, 9), (IP, libc::IP_TOS, vec![0x10])]);
    set(&pair.0, IP, libc::IP_RECVTTL, 0).unwrap();
    assert_eq!(through(&pair, &[]), [(IP, libc::IP_TOS, vec![0x10])]);
}

fn hops_and_class_of_v6() {
    let pair = connected(V6);
    set(&pair.0, IPV6, libc::IPV6_RECVHOPLIMIT, 1).unwrap();
    assert_eq!(through(&pair, &[]), [entry(IPV6, libc::IPV6_HOPLIMIT, 64)]);
    set(&pair.0, IPV6, libc::IPV6_RECVTCLASS, 1).unwrap();
    set(&pair.1, IPV6, libc::IPV6_UNICAST_HOPS, 3).unwrap();
    set(&pair.1, IPV6, libc::IPV6_TCLASS, 0x20).unwrap();
    let told = [entry(IPV6, libc::IPV6_HOPLIMIT, 3), entry(IPV6, libc::IPV6_TCLASS, 0x20)];
    assert_eq!(through(&pair, &[]), told);
}

/// The body of `struct in_pktinfo` of a packet over the loopback.
fn v4_info(ip: [u8; 4]) -> Vec<u8> {
    [1i32.to_ne_bytes(), ip, ip].concat()
}

fn v6_info(ip: Ipv6Addr) -> Vec<u8> {
    [&ip.octets()[..], &1i32.to_ne_bytes()].concat()
}

fn addresses_of_both() {
    let pair = connected(V4);
    set(&pair.0, IP, libc::IP_PKTINFO, 1).unwrap();
    assert_eq!(through(&pair, &[]), [(IP, libc::IP_PKTINFO, v4_info([127, 0, 0, 1]))]);
    // Which of its addresses a receiver for all was sent to.
    let receiver = UdpSocket::bind("0.0.0.0:0").unwrap();
    set(&receiver, IP, libc::IP_PKTINFO, 1).unwrap();
    pair.1.send_to(b"x", ("127.0.0.9", receiver.local_addr().unwrap().port())).unwrap();
    assert_eq!(get(&receiver, 200).control, [(IP, libc::IP_PKTINFO, v4_info([127, 0, 0, 9]))]);
    let pair = connected(V6);
    set(&pair.0, IPV6, libc::IPV6_RECVPKTINFO, 1).unwrap();
    assert_eq!(through(&pair, &[]), [(IPV6, libc::IPV6_PKTINFO, v6_info(Ipv6Addr::LOCALHOST))]);
}

fn mapped_addresses() {
    let receiver = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let sender = UdpSocket::bind((V4, 0)).unwrap();
    sender.connect((V4, receiver.local_addr().unwrap().port())).unwrap();
    set(&receiver, IPV6, libc::IPV6_RECVPKTINFO, 1).unwrap();
    set(&receiver, IPV6, libc::IPV6_RECVHOPLIMIT, 1).unwrap();
    set(&receiver, IP, libc::IP_RECVTTL, 1).unwrap();
    let ip = "::ffff:127.0.0.1".parse().unwrap();
    let mut told = through(&(receiver, sender), &[]);
    told.sort();
    assert_eq!(told, [entry(IP, libc::IP_TTL, 64), (IPV6, libc::IPV6_PKTINFO, v6_info(ip))]);
}

fn wrong_wishes() {
    let (_receiver, sender) = connected(V4);
    for (wish, error) in [
        (entry(IP, libc::IP_TTL, 0), Errno::EINVAL),
        (entry(IP, libc::IP_TTL, 256), Errno::EINVAL),
        ((IP, libc::IP_TTL, vec![9]), Errno::EINVAL),
        (entry(IP, libc::IP_TOS, 256), Errno::EINVAL),
        (entry(IP, 9999, 1), Errno::EINVAL),
        ((IP, libc::IP_PKTINFO, [99i32.to_ne_bytes(), [0; 4], [0; 4]].concat()), Errno::ENODEV),
    ] {
        assert_eq!(send_with(&sender, b"x", std::slice::from_ref(&wish)), Err(error), "{wish:?}");
    }
    assert_eq!(set(&sender, IP, libc::IP_TTL, 0), Err(Errno::EINVAL));
    let (_receiver, sender) = connected(V6);
    for (wish, error) in [
        (entry(IPV6, libc::IPV6_HOPLIMIT, 256), Errno::EINVAL),
        (entry(IPV6, libc::IPV6_HOPLIMIT, -2), Errno::EINVAL),
        (entry(IPV6, libc::IPV6_TCLASS, 256), Errno::EINVAL),
        ((IPV6, libc::IPV6_TCLASS, vec![1, 2]), Errno::EINVAL),
        (entry(IPV6, 9999, 1), Errno::EINVAL),
    ] {
        assert_eq!(send_with(&sender, b"x", std::slice::from_ref(&wish)), Err(error), "{wish:?}");
    }
}

fn values_of_one_packet() {
    let pair = connected(V4);
    set(&pair.0, IP, libc::IP_RECVTTL, 1).unwrap();
    set(&pair.0, IP, libc::IP_RECVTOS, 1).unwrap();
    let wishes = [entry(IP, libc::IP_TTL, 5), (IP, libc::IP_TOS, vec![8])];
    assert_eq!(through(&pair, &wishes), [entry(IP, libc::IP_TTL, 5), (IP, libc::IP_TOS, vec![8])]);
    assert_eq!(through(&pair, &[]), [entry(IP, libc::IP_TTL, 64), (IP, libc::IP_TOS, vec![0])]);
    let pair = connected(V6);
    set(&pair.0, IPV6, libc::IPV6_RECVHOPLIMIT, 1).unwrap();
    let hops = |value| [entry(IPV6, libc::IPV6_HOPLIMIT, value)];
    assert_eq!(through(&pair, &hops(5)), hops(5));
    assert_eq!(through(&pair, &hops(-1)), hops(64));
    // From another address than the socket's.
    let receiver = UdpSocket::bind((V4, 0)).unwrap();
    let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let source = [[0; 4], [127, 0, 0, 7], [0; 4]].concat();
    assert_eq!(send_with(&sender, b"x", &[(IP, libc::IP_PKTINFO, source)]), Ok(1));
    assert_eq!(receiver.recv_from(&mut [0; 10]).unwrap().1.ip(), IpAddr::from([127, 0, 0, 7]));
}

fn cut_entries() {
    // SAFETY: computes a size.
    let header = unsafe { libc::CMSG_LEN(0) } as usize;
    let (receiver, sender) = connected(V6);
    set(&receiver, IPV6, libc::IPV6_RECVHOPLIMIT, 1).unwrap();
    for (room, len) in [(0, None), (header - 1, None), (header, Some(0)), (header + 2, Some(2))] {
        sender.send(b"x").unwrap();
        let message = get(&receiver, room);
        assert_eq!(message.flags & libc::MSG_CTRUNC, libc::MSG_CTRUNC, "{room}");
        let bodies: Vec<_> = message.control.iter().map(|(_, _, body)| body.len()).collect();
        assert_eq!(bodies, Vec::from_iter(len), "{room}");
        assert_eq!(message.control_len, len.map_or(0, |len| header + len), "{room}");
    }
    sender.send(b"x").unwrap();
    let message = get(&receiver, header + 4);
    assert_eq!((message.flags & libc::MSG_CTRUNC, message.control.len()), (0, 1));
}

fn entries_of_others() {
    // What is for another version, or another domain, is not looked at.
    let (receiver, sender) = connected(V4);
    assert_eq!(send_with(&sender, b"x", &[entry(IPV6, libc::IPV6_HOPLIMIT, 999)]), Ok(1));
    assert_eq!(get(&receiver, 100).control, []);
    assert_eq!(send_with(&sender, b"x", &[entry(libc::SOL_SOCKET, libc::SCM_RIGHTS, 0)]), Ok(1));
    assert_eq!(get(&receiver, 100).control, []);
    let (_receiver, sender) = connected(V6);
    assert_eq!(send_with(&sender, b"x", &[entry(IP, libc::IP_TTL, 999)]), Ok(1));
}
