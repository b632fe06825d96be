//! Where pages are: move_pages(2).

use libc::SYS_move_pages;
use roundtable_programs::child::fork;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::mem::{Map, RW, SHARED};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::{PAGE, pid};
use roundtable_programs::{Errno, row, tests};

tests! { places_of_pages, errors }

/// The status of each page.
fn places(pid: usize, pages: &[usize], nodes: Option<&[i32]>) -> Result<Vec<i32>, Errno> {
    let mut status = vec![99i32; pages.len()];
    let nodes = nodes.map_or(0, |nodes| nodes.as_ptr() as usize);
    let (at, out) = (pages.as_ptr() as usize, status.as_mut_ptr() as usize);
    call(SYS_move_pages, [pid, pages.len(), at, nodes, out, 2])?;
    Ok(status)
}

fn places_of_pages() {
    huge::pool(2);
    const NO_PAGE: i32 = -libc::ENOENT;
    const NO_PLACE: i32 = -libc::EFAULT;
    let map = Map::anonymous(4 * PAGE);
    map.set(0, 1);
    map.get(PAGE);
    let gone = Map::anonymous(PAGE);
    let gap = gone.address;
    gone.unmap().unwrap();
    let large = huge::sized(2).map(2 * HUGE, RW, SHARED).expect("huge pages");
    large.set(0, 1);
    let pages = [0, 1, 2].map(|page| map.address + page * PAGE);
    let pages = [pages[0], pages[1], pages[2], gap, large.address, large.address + HUGE];
    // The page of zeroes is nobody's.
    let want = vec![0, NO_PLACE, NO_PAGE, NO_PLACE, 0, NO_PAGE];
    assert_eq!(places(0, &pages, None), Ok(want.clone()));
    assert_eq!(places(pid() as usize, &pages, None), Ok(want));
    assert_eq!(places(0, &pages[..1], Some(&[0])), Ok(vec![0]));
    assert_eq!(places(0, &[], None), Ok(vec![]));
}

fn errors() {
    let mut rows = Rows::default();
    let map = Map::anonymous(PAGE);
    map.set(0, 1);
    let (page, mut status) = (map.address, 0i32);
    let (at, out) = ((&raw const page) as usize, (&raw mut status) as usize);
    let go = |pid: usize, nodes: usize, flags: usize| -> Answer {
        call(SYS_move_pages, [pid, 1, at, nodes, out, flags])
    };
    let bad = 1000i32;
    row!(rows, EINVAL, go(0, 0, 1));
    row!(rows, ESRCH, go(0x3f_ffff, 0, 2));
    row!(rows, ENODEV, go(0, (&raw const bad) as usize, 2));
    row!(rows, EFAULT, call(SYS_move_pages, [0, 1, 8, 0, out, 2]));
    row!(rows, EFAULT, call(SYS_move_pages, [0, 1, at, 0, 8, 2]));
    fork(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(1000) }, 0);
        assert_eq!(go(0, 0, 4), Err(Errno::EPERM));
        assert_eq!(go(1, 0, 2), Err(Errno::EPERM));
    })
    .ok();
    rows.finish();
}
