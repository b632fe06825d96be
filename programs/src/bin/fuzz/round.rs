//! One round: starts the actors, goes on with those that die, wakes those that wait, and cleans up behind them.

use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use roundtable_programs::child::{self, waitpid};
use roundtable_programs::fault;
use roundtable_programs::sharing;
use roundtable_programs::sys::{c_string, settles};

use crate::accounts;
use crate::actor::{self, ROUND};
use crate::bystander::Bystander;
use crate::grammar::{Mixture, catch_all};
use crate::journal;
use crate::plan::Plan;

/// Whom the actors run as: nobody.
pub const USER: u32 = 65534;
/// Where the plan lies for actors that execute this program again.
pub const PLAN: &str = "/tmp/fuzz-plan";
/// The actors' folder.
const FOLDER: &str = "/tmp/fuzz";
const HUGE_FOLDER: &str = "/tmp/fuzz/huge";
/// Regions, where the kernel has such.
const REGION_FOLDER: &str = "/tmp/fuzz/share";
/// How long the bystander may take to answer. Not a promise about latency: beyond it the machine is as good as dead.
pub const ANSWER: Duration = Duration::from_secs(40);
/// How long processes may take to die.
const DYING: Duration = Duration::from_secs(40);
/// An actor that has not ended a call for so long is woken, and after as long again ended.
const STUCK: Duration = Duration::from_millis(200);
/// How often the watcher looks.
const TICK: Duration = Duration::from_millis(10);

/// Readies this process for children that find out about faults.
pub fn catch_faults() {
    // The handler is installed by the first use.
    let _ = fault::read(catch_faults as *const () as usize);
    catch_all();
}

/// Once, before the first round.
pub fn set_up() -> Result<(), String> {
    fs::create_dir_all(FOLDER).map_err(|error| format!("{FOLDER}: {error}"))?;
    // SAFETY: the set lives through the call.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &child_signal(), std::ptr::null_mut()) };
    let _ = fault::read(FOLDER.as_ptr() as usize);
    Ok(())
}

fn child_signal() -> libc::sigset_t {
    roundtable_programs::signals::set_of(&[libc::SIGCHLD])
}

/// One actor's first process.
struct Actor {
    number: u32,
    pid: i32,
    calls: u32,
    since: Instant,
    woken: bool,
}

/// Plays a round of at most so long, with other programs beside it; gives what was found.
pub fn play(
    plan: &Plan,
    beside: &[Vec<String>],
    time: Duration,
    bystander: &mut Bystander,
) -> Result<Option<String>, String> {
    mount("tmpfs", FOLDER, "size=24M,nr_inodes=400,mode=1777")?;
    fs::create_dir(HUGE_FOLDER).map_err(|error| format!("{HUGE_FOLDER}: {error}"))?;
    mount("hugetlbfs", HUGE_FOLDER, "pagesize=2M,mode=1777,size=48M")?;
    fs::create_dir(REGION_FOLDER).map_err(|error| format!("{REGION_FOLDER}: {error}"))?;
    if has_regions() {
        mount("msharefs", REGION_FOLDER, "")?;
    }
    fs::write(PLAN, plan.words()).map_err(|error| format!("{PLAN}: {error}"))?;
    let found = act(plan, beside, time, bystander)?;
    let found = found.or_else(|| end_all().err());
    if found.is_some() {
        return Ok(found);
    }
    Ok(clean_up().err().or_else(|| check().err()).or_else(|| bystander.ask(b'e', ANSWER).err()))
}

/// The part of a round with actors in it. It is over when they are, or the programs beside them where there are no calls.
fn act(
    plan: &Plan,
    beside: &[Vec<String>],
    time: Duration,
    bystander: &mut Bystander,
) -> Result<Option<String>, String> {
    for notes in (0..plan.actors).filter_map(journal::notes) {
        // Relaxed: no actor lives yet.
        [&notes.next, &notes.calls, &notes.failed].iter().for_each(|count| count.store(0, Relaxed));
    }
    let mut actors: Vec<Actor> = (0..plan.actors)
        .filter(|&number| plan.keep.has_actor(number))
        .map(|number| start(plan, number))
        .collect();
    let mut others: Vec<i32> = beside.iter().map(|line| start_program(plan, line)).collect();
    let end = Instant::now() + time;
    let mut ticks = 0u32;
    while (!actors.is_empty() || plan.calls == 0 && !others.is_empty()) && Instant::now() < end {
        let tick = libc::timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as i64 };
        // SAFETY: the set and the time live through the call; no siginfo is asked for.
        unsafe { libc::sigtimedwait(&child_signal(), std::ptr::null_mut(), &tick) };
        while let Ok((pid @ 1.., _)) = waitpid(-1, libc::WNOHANG) {
            others.retain(|&other| other != pid);
            // Others are children that an actor has given us: clone(2) with CLONE_PARENT.
            let Some(place) = actors.iter().position(|actor| actor.pid == pid) else { continue };
            let number = actors.swap_remove(place).number;
            let next = journal::notes(number).map_or(u32::MAX, |notes| notes.next.load(Relaxed));
            if next < plan.calls {
                actors.push(start(plan, number));
            }
        }
        actors.iter_mut().for_each(wake);
        ticks += 1;
        if ticks.is_multiple_of(20)
            && let Err(finding) = bystander.ask(b'?', ANSWER)
        {
            return Ok(Some(finding));
        }
        // A machine that counts instructions may take minutes for a second, and the host takes silence for a machine that hangs.
        if plan.calls == 0 && ticks.is_multiple_of(100) {
            println!("# the round goes on, and the bystander answers");
        }
        if ticks.is_multiple_of(50)
            && let Err(finding) = check()
        {
            return Ok(Some(finding));
        }
    }
    Ok(end_children(actors.into_iter().map(|actor| actor.pid).chain(others).collect()).err())
}

/// Ends the processes that the watcher has started itself: one that has not run yet is root's, and not met with the user's.
fn end_children(mut children: Vec<i32>) -> Result<(), String> {
    // SAFETY: takes integers; the processes are our children and not waited for.
    children.iter().for_each(|pid| _ = unsafe { libc::kill(*pid, libc::SIGKILL) });
    let gone = settles(DYING, || {
        children.retain(|pid| matches!(waitpid(*pid, libc::WNOHANG), Ok((0, _))));
        children.is_empty()
    });
    if gone { Ok(()) } else { Err(format!("unkillable: of the watcher's own children {children:?}")) }
}

/// Starts an actor's first process, which goes on where the one before it was.
fn start(plan: &Plan, number: u32) -> Actor {
    let first = journal::notes(number).map_or(0, |notes| notes.next.load(Relaxed));
    let plan = plan.clone();
    let run = move || {
        let mixture = Mixture::of(&plan);
        let calls = plan.calls;
        become_nobody(&plan);
        catch_faults();
        ROUND.get_or_init(|| (plan, mixture));
        actor::play(number, first..calls, 0, 0);
    };
    let child = child::fork(run);
    // It is waited for with all others.
    let pid = child.release();
    if let Some(notes) = journal::notes(number) {
        notes.process.store(pid, Relaxed);
    }
    Actor { number, pid, calls: 0, since: Instant::now(), woken: false }
}

/// Starts somebody else's program in the actors' folder.
fn start_program(plan: &Plan, line: &[String]) -> i32 {
    let words: Vec<_> = line.iter().map(|word| c_string(word)).collect();
    let program = words.first().map(|name| c_string(&format!("/bin/{}", name.to_string_lossy())));
    let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment = [c"PATH=/bin".as_ptr(), c"HOME=/tmp/fuzz".as_ptr(), std::ptr::null()];
    let plan = plan.clone();
    let child = child::fork(move || {
        become_nobody(&plan);
        if let Some(program) = program {
            if plan.trace {
                // SAFETY: takes integers.
                unsafe { (libc::dup2(journal::TRACE, 1), libc::dup2(journal::TRACE, 2)) };
            }
            // SAFETY: the strings and the lists that end with null live through the call.
            unsafe { libc::execve(program.as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
        }
    });
    child.release()
}

fn become_nobody(plan: &Plan) {
    use libc::*;
    let limit = |resource, value: u64| {
        let limit = rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: the limit lives through the call.
        unsafe { setrlimit(resource, &limit) };
    };
    limit(RLIMIT_NPROC, if plan.calls == 0 { 200 } else { 24 + 8 * u64::from(plan.actors) });
    limit(RLIMIT_NOFILE, journal::TRACE as u64 - 4);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_MEMLOCK, 64 << 20);
    if plan.round_rng().chance(4) {
        limit(RLIMIT_AS, 1 << 30);
    }
    let path = c_string(FOLDER);
    // SAFETY: plain calls with integers, and strings and a set that live through them.
    unsafe {
        setpgid(0, 0);
        sigprocmask(SIG_UNBLOCK, &child_signal(), std::ptr::null_mut());
        chdir(path.as_ptr());
        // Unlike the watcher.
        let _ = fs::write("/proc/self/oom_score_adj", "0");
        setgroups(0, std::ptr::null());
        setresgid(USER, USER, USER);
        setresuid(USER, USER, USER);
        prctl(PR_SET_DUMPABLE, 1);
        // Nothing of the watcher's but the trace, and something to read and write from the start.
        close_range(0, journal::TRACE as u32 - 1, 0);
        for path in [c"/dev/zero", c"/dev/null", c"/dev/null"] {
            open(path.as_ptr(), O_RDWR);
        }
    }
}

/// Wakes an actor whose calls do not end, then ends it: its group, as far as that has stayed together.
fn wake(actor: &mut Actor) {
    let calls = journal::notes(actor.number).map_or(0, |notes| notes.calls.load(Relaxed));
    if calls != actor.calls {
        (actor.calls, actor.since, actor.woken) = (calls, Instant::now(), false);
        return;
    }
    let signal = match (actor.since.elapsed() > STUCK, actor.woken) {
        (true, false) => libc::SIGUSR2,
        (true, true) => libc::SIGKILL,
        _ => return,
    };
    (actor.since, actor.woken) = (Instant::now(), true);
    // SAFETY: takes integers; the process is our child and not waited for.
    unsafe {
        libc::kill(-actor.pid, signal);
        libc::kill(actor.pid, signal);
    }
}

/// Kills all processes of the actors' user.
fn end_all() -> Result<(), String> {
    let gone = settles(DYING, || {
        let killer = child::fork_code(|| {
            // SAFETY: takes integers. Not itself, and nobody of another user.
            unsafe {
                libc::setresuid(USER, USER, USER);
                libc::kill(-1, libc::SIGKILL)
            };
            0
        });
        killer.wait();
        while let Ok((1.., _)) = waitpid(-1, libc::WNOHANG) {}
        accounts::of_user(USER).is_empty()
    });
    if gone { Ok(()) } else { Err(format!("unkillable: {}", accounts::of_user(USER).join("; "))) }
}

/// Removes what outlives processes.
fn clean_up() -> Result<(), String> {
    let text = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    for line in text.lines().skip(1) {
        if let Some(id) = line.split_whitespace().nth(1).and_then(|word| word.parse::<i32>().ok()) {
            // SAFETY: IPC_RMID takes no pointer.
            unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
        }
    }
    let regions = has_regions().then_some(REGION_FOLDER);
    for folder in regions.into_iter().chain([HUGE_FOLDER, FOLDER]) {
        let path = c_string(folder);
        // Linux closes files of the dead a moment later.
        // SAFETY: the path is NUL-terminated.
        let unmounted = settles(Duration::from_secs(5), || unsafe { libc::umount2(path.as_ptr(), 0) } == 0);
        if !unmounted {
            return Err(format!("busy-mount: {folder}: {}", std::io::Error::last_os_error()));
        }
    }
    Ok(())
}

fn has_regions() -> bool {
    fs::metadata("/sys/kernel/mm/mshare").is_ok()
}

/// Has the page tables checked, where the kernel can.
fn check() -> Result<(), String> {
    match fs::read_to_string(format!("{}/check", sharing::DIRECTORY)) {
        Ok(text) if text.starts_with("ok") => Ok(()),
        Ok(text) => Err(format!("page-tables: {}", text.trim())),
        Err(error) if sharing::protocol().is_some() => Err(format!("page-tables: {error}")),
        Err(_) => Ok(()),
    }
}

fn mount(kind: &str, target: &str, options: &str) -> Result<(), String> {
    let (kind_c, target_c, options_c) = (c_string(kind), c_string(target), c_string(options));
    // SAFETY: all are NUL-terminated and live through the call.
    let result = unsafe {
        libc::mount(kind_c.as_ptr(), target_c.as_ptr(), kind_c.as_ptr(), 0, options_c.as_ptr().cast())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(format!("mount {kind} on {target}: {}", std::io::Error::last_os_error()))
    }
}
