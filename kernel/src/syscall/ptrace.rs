//! ptrace(2): the requests.

use alloc::sync::Arc;

use linux_raw_sys::general::CAP_SYS_PTRACE;
use syscalls::Sysno;

use super::mm::check_may_access;
use super::{Args, Handler};
use crate::arch::fpu::FpuState;
use crate::errno::{Errno, Result};
use crate::mm::Rights;
use crate::mm::uaccess::{copy_from_user, copy_to_user, read_user, write_user};
use crate::namespaces::View;
use crate::process::ptrace::{
    self, NT_PRFPREG, NT_PRSTATUS, NT_X86_XSTATE, Resume, UserRegs, events, read_word, write_word,
};
use crate::process::user_dispatch::Config;
use crate::process::{self, Process, Thread};
use crate::sched;
use crate::seccomp;
use crate::signal::{SIGKILL, SIGNAL_MAX, SIGTRAP, SigInfo, SigSet, UserSigInfo, send_thread};

pub const TABLE: &[(Sysno, Handler)] = &[(Sysno::ptrace, ptrace)];

/// The requests, by the names of ptrace(2).
mod request {
    pub use linux_raw_sys::ptrace::{
        PTRACE_ARCH_PRCTL as ARCH_PRCTL, PTRACE_ATTACH as ATTACH, PTRACE_CONT as CONT,
        PTRACE_DETACH as DETACH, PTRACE_GET_RSEQ_CONFIGURATION as GET_RSEQ_CONFIGURATION,
        PTRACE_GET_SYSCALL_INFO as GET_SYSCALL_INFO,
        PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG as GET_SYSCALL_USER_DISPATCH_CONFIG,
        PTRACE_GETEVENTMSG as GETEVENTMSG, PTRACE_GETFPREGS as GETFPREGS, PTRACE_GETREGS as GETREGS,
        PTRACE_GETREGSET as GETREGSET, PTRACE_GETSIGINFO as GETSIGINFO, PTRACE_GETSIGMASK as GETSIGMASK,
        PTRACE_INTERRUPT as INTERRUPT, PTRACE_KILL as KILL, PTRACE_LISTEN as LISTEN,
        PTRACE_OLDSETOPTIONS as OLDSETOPTIONS, PTRACE_PEEKDATA as PEEKDATA,
        PTRACE_PEEKSIGINFO as PEEKSIGINFO, PTRACE_PEEKTEXT as PEEKTEXT, PTRACE_PEEKUSR as PEEKUSER,
        PTRACE_POKEDATA as POKEDATA, PTRACE_POKETEXT as POKETEXT, PTRACE_POKEUSR as POKEUSER,
        PTRACE_SECCOMP_GET_FILTER as SECCOMP_GET_FILTER, PTRACE_SECCOMP_GET_METADATA as SECCOMP_GET_METADATA,
        PTRACE_SEIZE as SEIZE, PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG as SET_SYSCALL_USER_DISPATCH_CONFIG,
        PTRACE_SETFPREGS as SETFPREGS, PTRACE_SETOPTIONS as SETOPTIONS, PTRACE_SETREGS as SETREGS,
        PTRACE_SETREGSET as SETREGSET, PTRACE_SETSIGINFO as SETSIGINFO, PTRACE_SETSIGMASK as SETSIGMASK,
        PTRACE_SINGLESTEP as SINGLESTEP, PTRACE_SYSCALL as SYSCALL, PTRACE_SYSEMU as SYSEMU,
        PTRACE_SYSEMU_SINGLESTEP as SYSEMU_SINGLESTEP, PTRACE_TRACEME as TRACEME,
    };
}

fn ptrace(args: &mut Args) -> Result<usize> {
    // What is no number of 32 bits is no request either.
    let request = u32::try_from(args.a[0]).unwrap_or(u32::MAX);
    let (address, data) = (args.a[2], args.a[3]);
    if request == request::TRACEME {
        return ptrace::trace_me().map(|()| 0);
    }
    let thread = u32::try_from(args.int(1)).ok().and_then(process::find_thread).ok_or(Errno::ESRCH)?;
    match request {
        request::ATTACH => return attach(&thread, None),
        request::SEIZE if address != 0 => return Err(Errno::EIO),
        request::SEIZE => return attach(&thread, Some(data)),
        _ => {}
    }
    if !ptrace::is_tracee_of_current(&thread) {
        return Err(Errno::ESRCH);
    }
    match request {
        request::KILL => {
            let own = process::current();
            let info = SigInfo::user(SIGKILL, 0, own.process.number(), own.credentials().uid);
            send_thread(&thread, info);
            return Ok(0);
        }
        request::INTERRUPT => return ptrace::interrupt(&thread).map(|()| 0),
        request::LISTEN => return ptrace::listen(&thread).map(|()| 0),
        _ => {}
    }
    let stop = ptrace::stopped(&thread)?;
    match request {
        request::CONT => go_on(&thread, Resume::Continue, data)?,
        request::SYSCALL => go_on(&thread, Resume::Calls, data)?,
        request::SINGLESTEP => go_on(&thread, Resume::Step, data)?,
        request::SYSEMU => go_on(&thread, Resume::Emulate, data)?,
        request::SYSEMU_SINGLESTEP => go_on(&thread, Resume::EmulateStep, data)?,
        request::DETACH => ptrace::detach(&thread, signal(data)?)?,
        // A program that its tracer may execute and not read, or one with other rights than it had, keeps its memory to itself.
        request::PEEKTEXT | request::PEEKDATA | request::POKETEXT | request::POKEDATA
            if !thread.process.is_dumpable() && !process::current().credentials().capable(CAP_SYS_PTRACE) =>
        {
            return Err(Errno::EIO);
        }
        request::PEEKTEXT | request::PEEKDATA => {
            let word = peek(&thread.process, address as u64)?;
            write_user(data, &word)?;
        }
        request::POKETEXT | request::POKEDATA => poke(&thread.process, address as u64, data as u64)?,
        request::PEEKUSER => write_user(data, &read_word(&thread, address)?)?,
        request::POKEUSER => write_word(&thread, address, data as u64)?,
        request::GETREGS => write_user(data, &thread.trace.with_registers(|registers| registers.words())?)?,
        request::SETREGS => set_words(&thread, &read_user::<UserRegs>(data)?)?,
        request::GETFPREGS => {
            let bytes = thread.trace.with_registers(|registers| legacy_of(&registers.user.fpu))?;
            copy_to_user(data, &bytes)?;
        }
        request::SETFPREGS => {
            let mut bytes = [0; LEGACY];
            copy_from_user(&mut bytes, data)?;
            thread.trace.with_registers(|registers| registers.user.fpu.set_legacy(&bytes))??;
        }
        request::ARCH_PRCTL => arch_prctl(&thread, data as u64, address)?,
        request::SETOPTIONS | request::OLDSETOPTIONS => {
            let wanted = u32::try_from(data).map_err(|_| Errno::EINVAL)?;
            ptrace::check_options(wanted)?;
            ptrace::set_options(&thread, wanted);
        }
        request::GETEVENTMSG => write_user(data, &message_of(&stop))?,
        request::GETSIGINFO => write_user(data, &UserSigInfo::from(stop.info.ok_or(Errno::EINVAL)?))?,
        request::SETSIGINFO => ptrace::set_info(&thread, read_user::<UserSigInfo>(data)?.to_kept()?)?,
        request::GETREGSET => regset(&thread, address, data, false)?,
        request::SETREGSET => regset(&thread, address, data, true)?,
        request::PEEKSIGINFO => return peek_signals(&thread, address, data),
        request::GETSIGMASK if address == size_of::<u64>() => {
            write_user(data, &thread.signals.shown_mask().0)?;
        }
        request::SETSIGMASK if address == size_of::<u64>() => {
            let mask: u64 = read_user(data)?;
            thread.signals.forget_saved_mask();
            thread.set_signal_mask(SigSet(mask));
        }
        request::GETSIGMASK | request::SETSIGMASK => return Err(Errno::EINVAL),
        request::GET_SYSCALL_INFO => return call_info(&thread, &stop, address, data),
        request::SECCOMP_GET_FILTER => return seccomp_filter(&thread, address, data),
        request::SECCOMP_GET_METADATA => return seccomp_metadata(&thread, address, data),
        request::GET_RSEQ_CONFIGURATION => return rseq_configuration(&thread, address, data),
        request::SET_SYSCALL_USER_DISPATCH_CONFIG | request::GET_SYSCALL_USER_DISPATCH_CONFIG
            if address != size_of::<[u64; 4]>() =>
        {
            return Err(Errno::EINVAL);
        }
        request::SET_SYSCALL_USER_DISPATCH_CONFIG => {
            let [mode, selector, offset, len] = read_user::<[u64; 4]>(data)?.map(|word| word as usize);
            thread.set_user_dispatch(&Config { mode, selector, offset, len })?;
        }
        request::GET_SYSCALL_USER_DISPATCH_CONFIG => {
            let Config { mode, selector, offset, len } = thread.user_dispatch();
            write_user(data, &[mode, selector, offset, len].map(|word| word as u64))?;
        }
        _ => return Err(Errno::EIO),
    }
    Ok(0)
}

fn attach(thread: &Arc<Thread>, seize: Option<usize>) -> Result<usize> {
    let seize = match seize {
        None => None,
        Some(wanted) => {
            let wanted = u32::try_from(wanted).map_err(|_| Errno::EIO)?;
            if wanted & !ptrace::options::ALL != 0 {
                return Err(Errno::EIO);
            }
            ptrace::check_options(wanted)?;
            Some(wanted)
        }
    };
    if thread.is_kernel() || Arc::ptr_eq(&thread.process, &process::current().process) {
        return Err(Errno::EPERM);
    }
    check_may_access(&thread.process)?;
    ptrace::attach(thread, seize).map(|()| 0)
}

/// A signal that a tracee goes on with: `EIO` for one that does not exist.
fn signal(data: usize) -> Result<u32> {
    u32::try_from(data).ok().filter(|signal| *signal <= SIGNAL_MAX).ok_or(Errno::EIO)
}

fn go_on(thread: &Thread, how: Resume, data: usize) -> Result<()> {
    ptrace::resume(thread, how, signal(data)?)
}

/// A word of the tracee's memory, whatever rights it has itself.
fn peek(process: &Process, address: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    let space = process.mm().ok_or(Errno::EIO)?;
    match space.read_remote(address, &mut bytes, Rights::Forced) {
        Ok(8) => Ok(u64::from_ne_bytes(bytes)),
        _ => Err(Errno::EIO),
    }
}

fn poke(process: &Process, address: u64, word: u64) -> Result<()> {
    let space = process.mm().ok_or(Errno::EIO)?;
    match space.write_remote(address, &word.to_ne_bytes(), Rights::Forced) {
        Ok(8) => Ok(()),
        _ => Err(Errno::EIO),
    }
}

fn set_words(thread: &Thread, words: &[u64]) -> Result<()> {
    thread.trace.with_registers(|registers| {
        words.iter().enumerate().try_for_each(|(index, word)| registers.set_word(index, *word))
    })?
}

/// Bytes of FXSAVE's area.
const LEGACY: usize = 512;

fn legacy_of(fpu: &FpuState) -> [u8; LEGACY] {
    core::array::from_fn(|at| fpu.as_bytes()[at])
}

/// `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Vector {
    base: usize,
    length: usize,
}

/// PTRACE_GETREGSET and PTRACE_SETREGSET: as much of a set as the caller has room for or gives; it is told how much that was.
fn regset(thread: &Thread, kind: usize, at: usize, set: bool) -> Result<()> {
    let vector: Vector = read_user(at)?;
    if !vector.length.is_multiple_of(size_of::<u64>()) {
        return Err(Errno::EINVAL);
    }
    let mut bytes = [0; FpuState::SIZE];
    let size = match u32::try_from(kind).map_err(|_| Errno::EINVAL)? {
        NT_PRSTATUS => {
            let words = thread.trace.with_registers(|registers| registers.words())?;
            for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
                place.copy_from_slice(&word.to_ne_bytes());
            }
            size_of::<UserRegs>()
        }
        NT_PRFPREG => {
            bytes[..LEGACY].copy_from_slice(&thread.trace.with_registers(|r| legacy_of(&r.user.fpu))?);
            LEGACY
        }
        NT_X86_XSTATE => thread.trace.with_registers(|registers| registers.user.fpu.to_regset(&mut bytes))?,
        _ => return Err(Errno::EINVAL),
    };
    let length = vector.length.min(size);
    if set {
        copy_from_user(&mut bytes[..length], vector.base)?;
        match kind as u32 {
            NT_PRSTATUS => {
                for (index, word) in bytes[..length].chunks_exact(8).enumerate() {
                    let word = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
                    thread.trace.with_registers(|registers| registers.set_word(index, word))??;
                }
            }
            NT_PRFPREG => {
                let legacy: [u8; LEGACY] = core::array::from_fn(|at| bytes[at]);
                thread.trace.with_registers(|registers| registers.user.fpu.set_legacy(&legacy))??;
            }
            _ => {
                thread.trace.with_registers(|registers| registers.user.fpu.set_regset(&bytes[..length]))??
            }
        }
    } else {
        copy_to_user(vector.base, &bytes[..length])?;
    }
    write_user(at, &Vector { length, ..vector })
}

fn arch_prctl(thread: &Thread, code: u64, address: usize) -> Result<()> {
    const SET_GS: u64 = 0x1001;
    const SET_FS: u64 = 0x1002;
    const GET_FS: u64 = 0x1003;
    const GET_GS: u64 = 0x1004;
    const FS_BASE: usize = 21;
    const GS_BASE: usize = 22;
    let set = |index: usize| {
        let set = thread.trace.with_registers(|registers| registers.set_word(index, address as u64))?;
        set.map_err(|_| Errno::EPERM)
    };
    let get = |index: usize| {
        let word = thread.trace.with_registers(|registers| registers.words()[index])?;
        write_user(address, &word)
    };
    match code {
        SET_GS => set(GS_BASE),
        SET_FS => set(FS_BASE),
        GET_FS => get(FS_BASE),
        GET_GS => get(GS_BASE),
        _ => Err(Errno::EINVAL),
    }
}

/// `struct ptrace_peeksiginfo_args`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Peek {
    offset: u64,
    flags: u32,
    count: i32,
}

/// PTRACE_PEEKSIGINFO: copies of signals that wait, which stay. Returns how many.
fn peek_signals(thread: &Thread, at: usize, to: usize) -> Result<usize> {
    const SHARED: u32 = 1;
    let peek: Peek = read_user(at)?;
    if peek.flags & !SHARED != 0 || peek.count < 0 {
        return Err(Errno::EINVAL);
    }
    /// Signals that are passed over in one hold of their lock.
    const SKIP: u64 = 64;
    let shared = peek.flags & SHARED != 0;
    let (mut copied, mut skip, mut place) = (0, peek.offset, None);
    while copied < peek.count as usize {
        let some = skip.min(SKIP);
        let passed = if skip > some { some - 1 } else { some };
        let Some((found, info)) = thread.pending_behind(shared, place, passed as usize) else { break };
        place = Some(found);
        if skip > some {
            skip -= some;
        } else {
            skip = 0;
            match write_user(to + copied * size_of::<UserSigInfo>(), &UserSigInfo::from(info)) {
                Ok(()) => copied += 1,
                Err(error) if copied == 0 => return Err(error),
                Err(_) => break,
            }
        }
        if process::current().signal_pending() {
            break;
        }
        sched::cond_resched();
    }
    Ok(copied)
}

/// `struct ptrace_syscall_info`, with the largest of its variants.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CallInfo {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    ip: u64,
    sp: u64,
    /// Number and arguments; or the result and whether it is an error.
    words: [u64; 7],
    /// What a seccomp filter has said.
    data: u32,
    pad_end: u32,
}

/// PTRACE_GET_SYSCALL_INFO: fills in what there is room for, and returns how much there would be.
fn call_info(thread: &Thread, stop: &ptrace::Stopped, room: usize, at: usize) -> Result<usize> {
    use crate::seccomp::ARCH;
    const HEAD: usize = 24;
    const ENTRY: u8 = 1;
    const EXIT: u8 = 2;
    const SECCOMP: u8 = 3;
    let w = thread.trace.with_registers(|registers| registers.words())?;
    let mut info = CallInfo { arch: ARCH, ip: w[16], sp: w[19], ..CallInfo::default() };
    let code = stop.info.map_or(0, |info| info.code as u32);
    let call = [w[15], w[14], w[13], w[12], w[7], w[9], w[8]];
    let size = if code == SIGTRAP | 0x80 && stop.message == u64::from(ENTRY) {
        info.op = ENTRY;
        info.words = call;
        HEAD + 56
    } else if code == SIGTRAP | 0x80 && stop.message == u64::from(EXIT) {
        info.op = EXIT;
        let is_error = (-4095..0).contains(&(w[10] as i64));
        info.words = [w[10], u64::from(is_error), 0, 0, 0, 0, 0];
        HEAD + 9
    } else if code == SIGTRAP | events::SECCOMP << 8 {
        info.op = SECCOMP;
        info.words = call;
        info.data = stop.message as u32;
        HEAD + 60
    } else {
        HEAD
    };
    // SAFETY: a structure of integers without gaps.
    let bytes = unsafe {
        core::slice::from_raw_parts(core::ptr::from_ref(&info).cast::<u8>(), size_of::<CallInfo>())
    };
    copy_to_user(at, &bytes[..size.min(room)])?;
    Ok(size)
}

/// PTRACE_SECCOMP_GET_FILTER: writes a filter's instructions, if there is a place for them, and returns how many these are.
fn seccomp_filter(thread: &Thread, number: usize, to: usize) -> Result<usize> {
    let (program, _) = seccomp::filter_of(thread, number as u64)?;
    if to != 0 {
        for (at, instruction) in program.instructions().iter().enumerate() {
            write_user(to + at * size_of_val(instruction), instruction)?;
        }
    }
    Ok(program.len())
}

/// PTRACE_SECCOMP_GET_METADATA: the number of a filter comes with the structure, its flags are behind it.
fn seccomp_metadata(thread: &Thread, room: usize, at: usize) -> Result<usize> {
    const NUMBER: usize = 8;
    const WHOLE: usize = 16;
    if room < NUMBER {
        return Err(Errno::EINVAL);
    }
    let number: u64 = read_user(at)?;
    let (_, logs) = seccomp::filter_of(thread, number)?;
    if room >= WHOLE {
        write_user(at + NUMBER, &seccomp::flags_of(logs))?;
    }
    Ok(room.min(WHOLE))
}

/// PTRACE_GET_RSEQ_CONFIGURATION.
fn rseq_configuration(thread: &Thread, room: usize, at: usize) -> Result<usize> {
    use core::sync::atomic::Ordering::SeqCst;
    let pointer = thread.rseq.load(SeqCst) as u64;
    let length = thread.rseq_length.load(SeqCst);
    let signature = thread.rseq_signature.load(SeqCst);
    let words = [pointer, u64::from(length) | u64::from(signature) << 32, 0];
    let mut bytes = [0; 24];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    copy_to_user(at, &bytes[..room.min(bytes.len())])?;
    Ok(bytes.len())
}

/// What an event has to say: a number of a thread is told as the tracer knows it.
fn message_of(stop: &ptrace::Stopped) -> u64 {
    use linux_raw_sys::ptrace::{PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK_DONE};
    let is_number = (PTRACE_EVENT_FORK..=PTRACE_EVENT_VFORK_DONE).contains(&stop.event);
    if is_number { View::current().number(stop.message as u32).into() } else { stop.message }
}
