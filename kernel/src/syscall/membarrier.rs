//! membarrier(2).

use core::sync::atomic::{Ordering, fence};

use syscalls::Sysno;

use super::{Args, Handler};
use crate::arch::cpu::{self, CpuSet};
use crate::arch::ipi;
use crate::errno::{Errno, Result};
use crate::process::{self, rseq};

pub const TABLE: &[(Sysno, Handler)] = &[(Sysno::membarrier, membarrier)];

const QUERY: u32 = 0;
const GLOBAL: u32 = 1;
const GLOBAL_EXPEDITED: u32 = 1 << 1;
const REGISTER_GLOBAL_EXPEDITED: u32 = 1 << 2;
const PRIVATE_EXPEDITED: u32 = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: u32 = 1 << 4;
const PRIVATE_EXPEDITED_SYNC_CORE: u32 = 1 << 5;
const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: u32 = 1 << 6;
const PRIVATE_EXPEDITED_RSEQ: u32 = 1 << 7;
const REGISTER_PRIVATE_EXPEDITED_RSEQ: u32 = 1 << 8;
const GET_REGISTRATIONS: u32 = 1 << 9;
const SUPPORTED: u32 = (1 << 10) - 1;

/// Where registrations are that are shown and allow nothing: as on Linux, a special kind shows the plain one too.
const PLAIN_TOO: u32 = 16;

/// MEMBARRIER_CMD_FLAG_CPU: only the CPU that is named.
const ONE_CPU: u32 = 1;

fn membarrier(args: &mut Args) -> Result<usize> {
    let (command, flags, named) = (args.uint(0), args.uint(1), args.int(2));
    let with_flags = command == PRIVATE_EXPEDITED_RSEQ && flags == ONE_CPU;
    if flags != 0 && !with_flags {
        return Err(Errno::EINVAL);
    }
    let process = &process::current().process;
    let registered = process.membarrier.load(Ordering::SeqCst);
    let cpus = match command {
        QUERY => return Ok(SUPPORTED as usize),
        GET_REGISTRATIONS => return Ok(((registered | registered >> PLAIN_TOO) & SUPPORTED) as usize),
        REGISTER_GLOBAL_EXPEDITED | REGISTER_PRIVATE_EXPEDITED => {
            process.membarrier.fetch_or(command, Ordering::SeqCst);
            return Ok(0);
        }
        REGISTER_PRIVATE_EXPEDITED_SYNC_CORE | REGISTER_PRIVATE_EXPEDITED_RSEQ => {
            let shown = command | REGISTER_PRIVATE_EXPEDITED << PLAIN_TOO;
            process.membarrier.fetch_or(shown, Ordering::SeqCst);
            return Ok(0);
        }
        GLOBAL | GLOBAL_EXPEDITED => cpu::online(),
        PRIVATE_EXPEDITED | PRIVATE_EXPEDITED_SYNC_CORE | PRIVATE_EXPEDITED_RSEQ => {
            // Registration of a command is the next bit.
            if registered & command << 1 == 0 {
                return Err(Errno::EPERM);
            }
            process.mm().map_or(CpuSet::new(), |mm| mm.cpus())
        }
        _ => return Err(Errno::EINVAL),
    };
    let cpus = match with_flags {
        false => cpus,
        true if named >= 0 && (named as usize) < cpu::MAX_CPUS => {
            cpus.intersection(&CpuSet::single(named as u32))
        }
        // There is no such CPU, and nothing runs there.
        true => return Ok(0),
    };
    let restarts = command == PRIVATE_EXPEDITED_RSEQ;
    fence(Ordering::SeqCst);
    // The interrupt and its return make memory accesses and instruction fetches of the other CPUs begin anew.
    ipi::call(&cpus, &|| {
        fence(Ordering::SeqCst);
        if restarts && let Some(thread) = process::try_current() {
            rseq::preempted(&thread);
        }
    });
    fence(Ordering::SeqCst);
    Ok(0)
}
