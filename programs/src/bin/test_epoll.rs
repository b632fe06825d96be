//! epoll instances that watch each other, and changes of one that race with its use.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use roundtable_programs::child;
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{self, check, cpus};
use roundtable_programs::{Errno, procfs, signals, tests};

tests! { chain_from_the_top, chain_from_the_bottom, two_chains_joined, ways_to_the_top: 120, ways_through_layers: 60, files_below_a_new_way,
closed_during_a_search: 120, armed_again_by_another: 120, watches_are_limited, many_in_one: 60, the_mask_comes_back: 60 }

fn epoll() -> Fd {
    // SAFETY: takes an integer.
    Fd::own(check(unsafe { libc::epoll_create1(0) }).expect("epoll_create1"))
}

fn epolls(count: usize) -> Vec<Fd> {
    (0..count).map(|_| epoll()).collect()
}

fn eventfd() -> Fd {
    // SAFETY: takes integers.
    Fd::own(check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) }).expect("eventfd"))
}

fn control(epoll: &Fd, operation: i32, fd: &Fd, events: i32) -> Result<usize, Errno> {
    let mut event = libc::epoll_event { events: events as u32, u64: fd.raw() as u64 };
    // SAFETY: the event is a local.
    check(unsafe { libc::epoll_ctl(epoll.raw(), operation, fd.raw(), &mut event) })
}

fn add(epoll: &Fd, fd: &Fd) -> Result<usize, Errno> {
    control(epoll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN)
}

fn delete(epoll: &Fd, fd: &Fd) {
    control(epoll, libc::EPOLL_CTL_DEL, fd, 0).expect("EPOLL_CTL_DEL");
}

fn is_ready(epoll: &Fd) -> bool {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: room for one event.
    check(unsafe { libc::epoll_wait(epoll.raw(), &mut event, 1, 0) }).expect("epoll_wait") == 1
}

fn count(event: &Fd) {
    assert_eq!(event.write(&1u64.to_ne_bytes()), Ok(8));
}

/// Steps of the longest chain of instances.
const DEPTH: usize = 4;

/// Linux counts what is above an instance since 6.12.42: older ones let a chain grow from its top, as long as nothing is at its end.
fn counts_above() -> bool {
    let mut numbers = sys::release()
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect::<Vec<u32>>();
    numbers.resize(3, 0);
    !sys::is_linux() || numbers[..3] >= [6, 12, 42][..]
}

fn chain_from_the_top() {
    let chain = epolls(300);
    let refused = chain.windows(2).position(|pair| match add(&pair[0], &pair[1]) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error, Errno::ELOOP);
            true
        }
    });
    let event = eventfd();
    if counts_above() {
        assert_eq!(refused, Some(DEPTH));
        assert_eq!(add(&chain[DEPTH], &event), Ok(0));
        assert!(!is_ready(&chain[0]));
        count(&event);
        assert!(chain[..=DEPTH].iter().all(is_ready));
    } else {
        assert_eq!(add(&chain[299], &event), Err(Errno::EINVAL));
    }
}

fn chain_from_the_bottom() {
    let (chain, event) = (epolls(10), eventfd());
    assert_eq!(add(&chain[9], &event), Ok(0));
    let mut steps = 0;
    let refused = loop {
        match add(&chain[8 - steps], &chain[9 - steps]) {
            Ok(_) => steps += 1,
            Err(error) => break error,
        }
    };
    assert!(steps == DEPTH && matches!(refused, Errno::ELOOP | Errno::EINVAL), "{steps} steps, {refused:?}");
    count(&event);
    assert!(is_ready(&chain[9 - DEPTH]) && !is_ready(&chain[8 - DEPTH]));
}

/// Each of two chains is short, and the end of one is to watch the top of the other.
fn two_chains_joined() {
    if !counts_above() {
        roundtable_programs::harness::skip("this Linux does not count what is above");
    }
    let (upper, lower) = (epolls(3), epolls(3));
    for chain in [&upper, &lower] {
        chain.windows(2).for_each(|pair| assert_eq!(add(&pair[0], &pair[1]), Ok(0)));
    }
    assert_eq!(add(&upper[2], &lower[0]), Err(Errno::ELOOP));
    assert_eq!(add(&upper[2], &lower[1]), Ok(0));
    assert_eq!(add(&upper[1], &lower[0]), Ok(0));
    assert_eq!(add(&lower[2], &upper[0]), Err(Errno::ELOOP));
    let event = eventfd();
    assert_eq!(add(&lower[2], &event), Ok(0));
    count(&event);
    assert!(upper.iter().chain(&lower).all(is_ready));
}

/// A file is watched by many instances, and all of these by one.
fn ways_to_the_top() {
    const WAYS: usize = 500;
    let (layer, top, event) = (epolls(WAYS + 1), epoll(), eventfd());
    layer.iter().for_each(|epoll| assert_eq!(add(epoll, &event), Ok(0)));
    layer[..WAYS].iter().for_each(|epoll| assert_eq!(add(&top, epoll), Ok(0)));
    assert_eq!(add(&top, &layer[WAYS]), Err(Errno::EINVAL));
    // One goes, and another may come.
    delete(&top, &layer[7]);
    assert_eq!(add(&top, &layer[WAYS]), Ok(0));
    count(&event);
    assert!(is_ready(&top) && is_ready(&layer[WAYS]));
}

/// Each instance of a layer watches each of the one below.
fn ways_through_layers() {
    const WIDE: usize = 10;
    let event = eventfd();
    let layers: Vec<Vec<Fd>> = (0..4).map(|_| epolls(WIDE)).collect();
    layers[0].iter().for_each(|epoll| assert_eq!(add(epoll, &event), Ok(0)));
    for (below, above) in layers[..2].iter().zip(&layers[1..]) {
        for upper in above.iter().take(if above[0].raw() == layers[2][0].raw() { 1 } else { WIDE }) {
            below.iter().for_each(|lower| assert_eq!(add(upper, lower), Ok(0)));
        }
    }
    // A hundred ways lead to the first of the third layer.
    assert_eq!(add(&layers[2][1], &layers[1][0]), Err(Errno::EINVAL));
    // Fifty may lead to the fourth, and a hundred would.
    assert_eq!(add(&layers[3][0], &layers[2][0]), Err(Errno::EINVAL));
    count(&event);
    assert!(layers[2][0..1].iter().chain(&layers[1]).all(is_ready));
}

/// Ways are counted for files that are far below, and for those that come when all is built.
fn files_below_a_new_way() {
    let (bottom, middle, top) = (epoll(), epolls(20), epolls(20));
    middle.iter().for_each(|epoll| assert_eq!(add(epoll, &bottom), Ok(0)));
    // 400 ways of three instances, and no file at their end.
    top.iter().for_each(|upper| middle.iter().for_each(|lower| assert_eq!(add(upper, lower), Ok(0))));
    let event = eventfd();
    assert_eq!(add(&bottom, &event), Err(Errno::EINVAL));
    top[5..].iter().for_each(|upper| middle.iter().for_each(|lower| delete(upper, lower)));
    assert_eq!(add(&bottom, &event), Ok(0));
    // Now a file is there.
    assert_eq!(add(&top[5], &middle[0]), Err(Errno::EINVAL));
    count(&event);
    assert!(is_ready(&top[4]));
}

/// A file is closed while a search for circles looks at it.
fn closed_during_a_search() {
    let end = Instant::now() + Duration::from_secs(5);
    let (outer, inner) = (epoll(), epoll());
    let rounds = std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < end {
                let event = eventfd();
                assert_eq!(add(&inner, &event), Ok(0));
            }
        });
        let mut rounds = 0;
        while Instant::now() < end {
            assert_eq!(add(&outer, &inner), Ok(0));
            delete(&outer, &inner);
            rounds += 1;
        }
        rounds
    });
    println!("# {rounds} searches");
    // Nobody is left with a lock.
    child::in_child(|| assert_eq!(add(&epoll(), &epoll()), Ok(0)));
}

/// Who sees a one-shot event in memory arms the item again, before the call that brought it returns.
fn armed_again_by_another() {
    if sys::cpus().len() < 2 {
        roundtable_programs::harness::skip("needs two CPUs");
    }
    const ROUNDS: u32 = 1_000;
    let (epoll, event) = (epoll(), eventfd());
    count(&event);
    let interest = libc::EPOLLIN | libc::EPOLLONESHOT;
    assert_eq!(control(&epoll, libc::EPOLL_CTL_ADD, &event, interest), Ok(0));
    // The two words of an event that is read before anybody says that it is there.
    let words = [const { AtomicU32::new(0) }; 3];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                if words[0].swap(0, Ordering::SeqCst) != 0 {
                    assert_eq!(control(&epoll, libc::EPOLL_CTL_MOD, &event, interest), Ok(0));
                }
                std::hint::spin_loop();
            }
        });
        for round in 0..ROUNDS {
            // SAFETY: room for one event, which the other thread reads as the word that it is.
            let got = check(unsafe {
                libc::epoll_wait(epoll.raw(), words.as_ptr() as *mut libc::epoll_event, 1, 20_000)
            });
            if got != Ok(1) {
                over.store(true, Ordering::SeqCst);
                panic!("round {round}: {got:?}: the item is not armed");
            }
        }
        over.store(true, Ordering::SeqCst);
    });
}

/// What the instances of a user watch counts for the user, as long as it is watched.
fn watches_are_limited() {
    let setting = "/proc/sys/fs/epoll/max_user_watches";
    let before = procfs::number(setting);
    assert!(before > 10_000, "{before}");
    let (first, second) = (epoll(), epoll());
    let events = [eventfd(), eventfd(), eventfd()];
    procfs::write(setting, 2).unwrap();
    assert_eq!(add(&first, &events[0]), Ok(0));
    assert_eq!(add(&second, &events[1]), Ok(0));
    assert_eq!(add(&first, &events[2]), Err(Errno::ENOSPC));
    assert_eq!(add(&first, &events[0]), Err(Errno::EEXIST));
    // One that is watched no longer makes room, however it ends.
    delete(&first, &events[0]);
    assert_eq!(add(&second, &events[2]), Ok(0));
    drop(second);
    assert_eq!(add(&first, &events[2]), Ok(0));
    let [_, _, last] = events;
    drop(last);
    assert_eq!(add(&first, &eventfd()), Ok(0));
    procfs::write(setting, before).unwrap();
}

/// An instance that watches some thousand others is watched itself: the search for circles notes them all.
fn many_in_one() {
    let limit = libc::rlimit { rlim_cur: 8192, rlim_max: 8192 };
    // SAFETY: the limit is a local.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).expect("RLIMIT_NOFILE");
    let (top, middle, below) = (epoll(), epoll(), epolls(3000));
    for one in &below {
        add(&middle, one).expect("a watch");
    }
    assert_eq!(add(&top, &middle), Ok(0));
    assert_eq!(add(&below[2999], &top), Err(Errno::ELOOP));
}

/// epoll_pwait(2) ends for a stop that is over before its thread runs again: the old mask is back.
fn the_mask_comes_back() {
    const ROUNDS: u32 = 300;
    let [here, there, ..] = cpus()[..] else { skip("it takes two CPUs") };
    let shared = Shared::new();
    let waiter = child::fork(|| {
        sys::pin(there);
        let epoll = epoll();
        signals::mask(libc::SIG_BLOCK, &[libc::SIGUSR1]);
        let none = signals::set_of(&[]);
        loop {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            shared.add(0);
            let mut after = none;
            // SAFETY: room for one event; the sets live through the calls.
            let (result, blocked) = unsafe {
                let result = check(libc::epoll_pwait(epoll.raw(), &mut event, 1, -1, &none));
                check(libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &mut after)).unwrap();
                (result, libc::sigismember(&after, libc::SIGUSR1))
            };
            assert_eq!((result, blocked), (Err(Errno::EINTR), 1), "round {}", shared.get(0));
        }
    });
    // Somebody who wants to run there keeps the waiter from hearing at once.
    let busy = child::fork(|| {
        sys::pin(there);
        loop {
            std::hint::spin_loop();
        }
    });
    sys::pin(here);
    while shared.get(0) < ROUNDS {
        if procfs::state(waiter.pid) == Some('S') {
            signals::kill(waiter.pid, libc::SIGSTOP).unwrap();
            signals::kill(waiter.pid, libc::SIGCONT).unwrap();
        }
        assert_ne!(procfs::state(waiter.pid), Some('Z'), "round {}: it has another mask", shared.get(0));
    }
    busy.end();
    waiter.end();
}
