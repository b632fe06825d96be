//! A process that makes the calls of one actor.

use std::ffi::CString;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;

use crate::grammar::Mixture;
use crate::journal;
use crate::plan::Plan;
use crate::turn::Turn;

/// The round that is played, and what it mixes.
pub static ROUND: OnceLock<(Plan, Mixture)> = OnceLock::new();
/// This program's path.
pub static PROGRAM: OnceLock<CString> = OnceLock::new();

/// Makes an actor's calls; those of its first process are noted, so that who goes on after its death knows where.
pub fn play(actor: u32, calls: Range<u32>, salt: u64, depth: u32) {
    let Some((plan, mixture)) = ROUND.get() else { return };
    for index in calls.start..calls.end.min(plan.calls) {
        if depth == 0
            && let Some(notes) = journal::notes(actor)
        {
            // Relaxed: it is read when this process is dead, or as a hint.
            notes.next.store(index + 1, Relaxed);
        }
        if plan.keep.has(actor, index) {
            mixture.play(&mut Turn::new(plan, actor, index, salt, depth));
        }
    }
}
