//! What processes meet through: pipes, sockets, events, futexes, System V shared memory.

use libc::*;
use roundtable_programs::huge::HUGE;
use roundtable_programs::sys::PAGE;
use syscalls::Sysno;

use super::{Call, Kind, opened, opens, plain, special};
use crate::board::{Area, BOARD};
use crate::turn::Arg::{
    self, Address, Attached, Below, Bits, Buffer, Count, Descriptor, Events, Iovec, Is, OneOf, SignalSet,
    Size, Socket, Timespec, Word,
};
use crate::turn::Turn;

pub const CALLS: &[Call] = &[
    special("pipe2", 10, |turn| pair(turn, Sysno::pipe2)),
    special("socketpair", 5, |turn| pair(turn, Sysno::socketpair)),
    plain("sendto", 4, Sysno::sendto, &[Socket, Buffer, Size, MESSAGE, Is(0), Is(0)]),
    plain("recvfrom", 4, Sysno::recvfrom, &[Socket, Buffer, Size, MESSAGE, Is(0), Is(0)]),
    plain("sendmsg", 2, Sysno::sendmsg, &[Socket, Buffer, MESSAGE]),
    plain("recvmsg", 2, Sysno::recvmsg, &[Socket, Buffer, MESSAGE]),
    plain("shutdown", 1, Sysno::shutdown, &[Socket, Below(3)]),
    special("send-descriptor", 4, send_descriptor),
    opens(
        "eventfd2",
        3,
        Sysno::eventfd2,
        &[Below(3), Bits(&[1, O_NONBLOCK as usize, O_CLOEXEC as usize])],
        Kind::Any,
    ),
    opens("epoll_create1", 3, Sysno::epoll_create1, &[Is(0)], Kind::Events),
    plain("epoll_ctl", 10, Sysno::epoll_ctl, &[Events, OneOf(&[1, 1, 2, 3]), Descriptor, Buffer]),
    plain("epoll_pwait", 5, Sysno::epoll_pwait, &[Events, Buffer, Below(8), Below(4), SignalSet, Is(8)]),
    special("poll", 5, poll),
    plain("pselect6", 2, Sysno::pselect6, &[Below(64), Buffer, Buffer, Is(0), Timespec, Is(0)]),
    plain("futex-wait", 6, Sysno::futex, &[Word, FUTEX_WAITS, Is(0), Timespec, Is(0), Is(usize::MAX)]),
    plain("futex-wake", 8, Sysno::futex, &[FUTEX_PLACE, OneOf(&[1, 129]), Below(4)]),
    plain(
        "futex-requeue",
        3,
        Sysno::futex,
        &[Word, OneOf(&[3, 131, 4, 132]), Below(2), Below(3), Word, Is(0)],
    ),
    plain("futex-lock", 4, Sysno::futex, &[Word, OneOf(&[6, 7, 8, 134, 135]), Is(0), Timespec]),
    plain(
        "futex-memory",
        4,
        Sysno::futex,
        &[Address, OneOf(&[0, 1, 9, 10]), Below(2), Timespec, Address, Is(1)],
    ),
    plain("set_robust_list", 1, Sysno::set_robust_list, &[Buffer, Is(24)]),
    special("shmget", 10, get_segment),
    special("shmat", 14, attach_segment),
    plain("shmdt", 8, Sysno::shmdt, &[Attached]),
    plain("shmctl", 6, Sysno::shmctl, &[Arg::Segment, OneOf(&[0, 0, 2, 11, 12, 13, 14]), Buffer]),
    plain("readv-pipe", 2, Sysno::readv, &[Descriptor, Iovec, Count]),
];

const MESSAGE: Arg =
    Bits(&[MSG_DONTWAIT as usize, MSG_DONTWAIT as usize, MSG_PEEK as usize, MSG_TRUNC as usize]);
const FUTEX_WAITS: Arg = OneOf(&[0, 128, 9, 137]);
const FUTEX_PLACE: Arg = Word;

/// Two descriptors that belong together.
fn pair(turn: &mut Turn, number: Sysno) {
    let place = turn.put(&[0]);
    let flags =
        turn.bits(&[O_NONBLOCK as usize, O_NONBLOCK as usize, O_NONBLOCK as usize, O_CLOEXEC as usize]);
    let result = if number == Sysno::pipe2 {
        turn.call(number, [place, flags, 0, 0, 0, 0])
    } else {
        let kind = turn.one_of(&[SOCK_STREAM as usize, SOCK_DGRAM as usize, SOCK_SEQPACKET as usize]);
        turn.call(number, [AF_UNIX as usize, kind | flags, 0, place, 0, 0])
    };
    if result.is_ok() {
        for end in turn.two_ints(place) {
            opened(end, Kind::Any);
            if number == Sysno::socketpair {
                BOARD.sockets.put(end);
            }
        }
    }
}

/// Sends a descriptor through a socket: often the socket itself, which only a collector frees.
fn send_descriptor(turn: &mut Turn) {
    let socket = turn.draw(Socket);
    let sent = turn.draw(Descriptor);
    let byte = turn.put(&[0]) as u64;
    let iovec = turn.put(&[byte, 1]) as u64;
    // A cmsghdr: its length, SOL_SOCKET and SCM_RIGHTS, then the descriptor.
    let control =
        turn.put(&[20, u64::from(SOL_SOCKET as u32) | (SCM_RIGHTS as u64) << 32, sent as u32 as u64]) as u64;
    let message = turn.put(&[0, 0, iovec, 1, control, 24, 0]);
    let _ = turn.call(Sysno::sendmsg, [socket, message, MSG_DONTWAIT as usize, 0, 0, 0]);
}

fn poll(turn: &mut Turn) {
    let mut list = [0; 4];
    for entry in &mut list {
        let events = turn.rng.draw() & 0x1f;
        *entry = turn.draw(Descriptor) as u32 as u64 | events << 32;
    }
    let list = turn.put(&list);
    let (count, time) = (turn.rng.below(5), turn.draw(Below(6)));
    let _ = turn.call(Sysno::poll, [list, count, time, 0, 0, 0]);
}

fn get_segment(turn: &mut Turn) {
    let key = [0, 0, 0xf00d, 0xf00e, 0xf00f][turn.rng.below(5)];
    let huge = if turn.rng.chance(3) { 0 } else { SHM_HUGETLB };
    let size = if huge == 0 { (1 + turn.rng.below(64)) * PAGE } else { (1 + turn.rng.below(4)) * HUGE };
    let flags = 0o666
        | turn.bits(&[IPC_CREAT as usize, IPC_CREAT as usize, IPC_CREAT as usize, SHM_NORESERVE as usize]);
    if let Ok(segment) = turn.call(Sysno::shmget, [key, size, flags | huge as usize, 0, 0, 0]) {
        BOARD.segments.put(segment as i32);
    }
}

fn attach_segment(turn: &mut Turn) {
    let segment = turn.draw(Arg::Segment);
    let address = if turn.rng.chance(2) { 0 } else { turn.arena() & !(HUGE - 1) };
    let flags = turn.bits(&[SHM_RDONLY as usize, SHM_RND as usize, SHM_REMAP as usize, SHM_REMAP as usize]);
    if let Ok(address) = turn.call(Sysno::shmat, [segment, address, flags, 0, 0, 0]) {
        let area = Area { address, length: 2 * HUGE };
        BOARD.areas.put(area);
        BOARD.attached.put(area);
    }
}
