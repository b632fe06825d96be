//! While all stand still: does every mapping show what its file holds?
//!
//! read(2) goes through the file's cache, a load through the page table. Only pages that the table has an entry for are
//! looked at, so that looking changes nothing.

use roundtable_programs::fault;
use roundtable_programs::mem::mincore;

use crate::actor::Actor;
use crate::board::{Count, Kind};
use crate::scale::{page_size, places};
use crate::stamp::{USED, Word, stamp};
use crate::view::View;

fn in_file(actor: &Actor, file: usize, index: usize, place: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    let read = actor.grounds[file].file.read_at(&mut bytes, (index * page_size() + place) as u64);
    actor.expect(read.is_ok(), "pread");
    // Nothing at all is read behind the end of the file.
    (read == Ok(8)).then(|| u64::from_ne_bytes(bytes))
}

/// The pages of a view that this process has entries for.
fn present<'a>(view: &'a View) -> impl Iterator<Item = usize> + use<'a> {
    USED.into_iter().filter(|&index| {
        let base_page = mincore(view.address(index, 0), 4096);
        base_page.is_ok_and(|resident| resident[0])
    })
}

/// Stores a new stamp into each present page, and looks for it in the file.
pub fn write(actor: &Actor) {
    for view in &actor.views {
        for index in present(view) {
            for place in places() {
                let word = stamp(view.file, index, actor.board.nonce());
                if fault::store(view.address(index, place), word).is_err() {
                    continue;
                }
                let held = in_file(actor, view.file, index, place);
                if held != Some(word) {
                    actor.find(Kind::Lost, view.file, index, held.unwrap_or(0), word);
                }
            }
        }
    }
}

/// Compares each present page with the file.
pub fn compare(actor: &Actor) {
    let mut compared = 0;
    for view in &actor.views {
        for index in present(view) {
            for place in places() {
                let Ok(word) = fault::load(view.address(index, place)) else { continue };
                let held = in_file(actor, view.file, index, place);
                compared += 1;
                match Word::of(word, view.file, index) {
                    Word::Foreign => actor.find(Kind::Foreign, view.file, index, word, held.unwrap_or(0)),
                    Word::Junk => actor.find(Kind::Junk, view.file, index, word, held.unwrap_or(0)),
                    _ if held != Some(word) => {
                        actor.find(Kind::Stale, view.file, index, word, held.unwrap_or(0));
                    }
                    _ => {}
                }
            }
        }
    }
    actor.board.add(Count::Compared, compared);
}
