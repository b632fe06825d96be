//! Device numbers of file systems: no two live ones have the same.

use kernel_models::fs::minors::{FIRST, Minors};

static MINORS: Minors = Minors::new();

#[test]
fn no_two_live_ones_are_the_same() {
    let kept = MINORS.take().unwrap();
    // As often as there are numbers, and once more: what another has is passed over.
    for _ in 0..1 << 20 {
        let number = MINORS.take().unwrap();
        assert!(number != kept && (FIRST..1 << 20).contains(&number), "{number}");
        MINORS.give_back(number);
    }
    let mut all = vec![false; 1 << 20];
    all[kept as usize] = true;
    while let Some(number) = MINORS.take() {
        assert!(!std::mem::replace(&mut all[number as usize], true), "{number} is given twice");
    }
    assert_eq!(all.iter().filter(|taken| **taken).count(), (1 << 20) - FIRST as usize);
    // One that was given back is the only one to have.
    MINORS.give_back(kept);
    assert_eq!((MINORS.take(), MINORS.take()), (Some(kept), None));
}
