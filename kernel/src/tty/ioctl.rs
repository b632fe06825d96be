//! ioctl(2) on terminals.

use alloc::sync::Arc;

use linux_raw_sys::general as abi;
use linux_raw_sys::ioctl;

use super::core::{Opened, Tty, WindowSize};
use super::job;
use super::termios::{KernelTermios, KernelTermios2, SystemVTermio, Termios};
use crate::errno::{Errno, Result};
use crate::mm::uaccess::{read_user, write_user};
use crate::namespaces::View;
use crate::process::Pid;
use core::sync::atomic::Ordering;

/// When new settings take effect.
enum When {
    Now,
    AfterOutput,
    AfterOutputWithoutInput,
}

/// Carries an ioctl out on `tty`. `ENOTTY` for what terminals do not know.
pub fn ioctl(tty: &Arc<Tty>, file: Opened, command: u32, argument: usize) -> Result<usize> {
    if tty.hung_up(file) {
        // A shell that is left without its terminal takes this one as the word that it has none.
        return Err(if command == ioctl::TIOCSPGRP { Errno::ENOTTY } else { Errno::EIO });
    }
    match command {
        ioctl::TCGETS => write_user(argument, &tty.termios().to_kernel())?,
        ioctl::TCGETS2 => write_user(argument, &tty.termios().to_kernel2())?,
        ioctl::TCGETA => write_user(argument, &tty.termios().to_system_v())?,
        ioctl::TCSETS | ioctl::TCSETSW | ioctl::TCSETSF => {
            let new: KernelTermios = read_user(argument)?;
            let when = when(command, ioctl::TCSETS, ioctl::TCSETSW);
            set_termios(tty, file, when, |t| t.with_kernel(&new))?;
        }
        ioctl::TCSETS2 | ioctl::TCSETSW2 | ioctl::TCSETSF2 => {
            let new: KernelTermios2 = read_user(argument)?;
            let when = when(command, ioctl::TCSETS2, ioctl::TCSETSW2);
            set_termios(tty, file, when, |t| t.with_kernel2(&new))?;
        }
        ioctl::TCSETA | ioctl::TCSETAW | ioctl::TCSETAF => {
            let new: SystemVTermio = read_user(argument)?;
            let when = when(command, ioctl::TCSETA, ioctl::TCSETAW);
            set_termios(tty, file, when, |t| t.with_system_v(&new))?;
        }
        ioctl::TIOCGWINSZ => write_user(argument, &tty.window())?,
        ioctl::TIOCSWINSZ => {
            let size: WindowSize = read_user(argument)?;
            tty.set_window(size);
        }
        ioctl::TIOCGPGRP => give_number(job::foreground(tty, file.master)?, argument)?,
        ioctl::TIOCSPGRP => {
            let group: i32 = read_user(argument)?;
            job::set_foreground(tty, group)?;
        }
        ioctl::TIOCGSID => give_number(job::session(tty, file.master)?, argument)?,
        ioctl::TIOCSCTTY => job::set_controlling(tty, argument == 1, file.readable)?,
        ioctl::TIOCNOTTY => job::give_up(tty)?,
        ioctl::TCFLSH => {
            check(tty, file)?;
            flush(tty, argument)?;
        }
        ioctl::TCXONC => {
            check(tty, file)?;
            flow(tty, argument)?;
        }
        // A break cannot be sent: what remains of both calls is the wait for the output.
        ioctl::TCSBRK | ioctl::TCSBRKP | ioctl::TIOCSBRK | ioctl::TIOCCBRK => {
            check(tty, file)?;
            tty.drain(file)?;
        }
        ioctl::FIONREAD => {
            let count = tty.discipline.lock().available();
            write_user(argument, &(count as i32))?;
        }
        ioctl::TIOCOUTQ => write_user(argument, &(tty.driver.pending() as i32))?,
        ioctl::TIOCSTI => type_character(tty, file, argument)?,
        ioctl::TIOCEXCL => tty.exclusive.store(true, Ordering::SeqCst),
        ioctl::TIOCNXCL => tty.exclusive.store(false, Ordering::SeqCst),
        ioctl::TIOCGEXCL => write_user(argument, &i32::from(tty.exclusive.load(Ordering::SeqCst)))?,
        ioctl::TIOCGETD => write_user(argument, &0i32)?,
        ioctl::TIOCSETD => {
            let discipline: i32 = read_user(argument)?;
            if discipline != 0 {
                return Err(Errno::EINVAL);
            }
        }
        ioctl::TIOCGSOFTCAR => {
            let local = tty.termios().control & abi::CLOCAL != 0;
            write_user(argument, &i32::from(local))?;
        }
        ioctl::TIOCSSOFTCAR => {
            let local: i32 = read_user(argument)?;
            let mut termios = tty.termios();
            termios.control = termios.control & !abi::CLOCAL | if local != 0 { abi::CLOCAL } else { 0 };
            tty.set_termios(termios);
        }
        ioctl::TIOCVHANGUP => {
            if !crate::process::current().credentials().capable(abi::CAP_SYS_ADMIN) {
                return Err(Errno::EPERM);
            }
            job::hang_up(tty);
        }
        _ => return Err(Errno::ENOTTY),
    }
    Ok(0)
}

fn when(command: u32, now: u32, after_output: u32) -> When {
    if command == now {
        When::Now
    } else if command == after_output {
        When::AfterOutput
    } else {
        When::AfterOutputWithoutInput
    }
}

fn check(tty: &Tty, file: Opened) -> Result<()> {
    if file.master { Ok(()) } else { job::check_background_change(tty) }
}

fn set_termios(tty: &Tty, file: Opened, when: When, change: impl FnOnce(Termios) -> Termios) -> Result<()> {
    check(tty, file)?;
    match when {
        When::Now => {}
        When::AfterOutput => tty.drain(file)?,
        When::AfterOutputWithoutInput => {
            tty.drain(file)?;
            tty.flush_input();
        }
    }
    tty.set_termios(change(tty.termios()));
    Ok(())
}

/// tcflush(3).
fn flush(tty: &Tty, queue: usize) -> Result<()> {
    match queue as u32 {
        abi::TCIFLUSH => tty.flush_input(),
        abi::TCOFLUSH => tty.flush_output(),
        abi::TCIOFLUSH => {
            tty.flush_input();
            tty.flush_output();
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// tcflow(3).
fn flow(tty: &Tty, action: usize) -> Result<()> {
    match action as u32 {
        abi::TCOOFF => tty.set_stopped(true),
        abi::TCOON => tty.set_stopped(false),
        abi::TCIOFF | abi::TCION => {
            let index = if action as u32 == abi::TCIOFF { abi::VSTOP } else { abi::VSTART };
            let byte = tty.termios().char(index);
            if byte != 0 {
                tty.driver.send_urgent(byte);
            }
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// TIOCSTI: as if the character had been typed. Only on one's own terminal, or as root.
fn type_character(tty: &Arc<Tty>, _file: Opened, argument: usize) -> Result<()> {
    let own = job::current_terminal().is_some_and(|t| Arc::ptr_eq(&t, tty));
    if !own && !crate::process::current().credentials().capable(abi::CAP_SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let byte: u8 = read_user(argument)?;
    tty.receive(&[byte]);
    Ok(())
}

/// The number of a group or session, as the current process sees it.
fn give_number(number: Pid, address: usize) -> Result<()> {
    write_user(address, &(View::current().number(number) as i32))
}
