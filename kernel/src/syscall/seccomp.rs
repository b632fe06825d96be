//! seccomp(2), and prctl(2)'s part of it.

use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{read_user, read_user_array, write_user};
use crate::seccomp::{self, Instruction, MOST_INSTRUCTIONS};

pub const TABLE: &[(Sysno, Handler)] = &[(Sysno::seccomp, seccomp)];

/// `struct sock_fprog`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Described {
    len: u16,
    pad: [u16; 3],
    filter: usize,
}

fn seccomp(args: &mut Args) -> Result<usize> {
    const SET_MODE_STRICT: u32 = 0;
    const SET_MODE_FILTER: u32 = 1;
    const GET_ACTION_AVAIL: u32 = 2;
    const GET_NOTIF_SIZES: u32 = 3;
    let (flags, address) = (args.uint(1), args.a[2]);
    match args.uint(0) {
        SET_MODE_STRICT if flags == 0 && address == 0 => seccomp::set_strict(),
        SET_MODE_FILTER => add_filter(flags, address),
        GET_ACTION_AVAIL if flags == 0 => {
            let action: u32 = read_user(address)?;
            if seccomp::is_action(action) { Ok(0) } else { Err(Errno::EOPNOTSUPP) }
        }
        GET_NOTIF_SIZES if flags == 0 => write_user(address, &seccomp::NOTIFICATION_SIZES).map(|()| 0),
        _ => Err(Errno::EINVAL),
    }
}

/// prctl(PR_SET_SECCOMP).
pub(super) fn set_mode(mode: u32, address: usize) -> Result<usize> {
    match mode {
        seccomp::STRICT => seccomp::set_strict(),
        seccomp::FILTER => add_filter(0, address),
        _ => Err(Errno::EINVAL),
    }
}

fn add_filter(flags: u32, address: usize) -> Result<usize> {
    let instructions = || {
        let described: Described = read_user(address)?;
        let len = usize::from(described.len);
        if len == 0 || len > MOST_INSTRUCTIONS {
            return Err(Errno::EINVAL);
        }
        read_user_array::<Instruction>(described.filter, len)
    };
    seccomp::add_filter(instructions, flags)
}
