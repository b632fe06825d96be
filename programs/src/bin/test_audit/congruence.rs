//! Where and when processes map a file: at congruent addresses or not, too little of it, before the others.

use roundtable_programs::child::Child;
use roundtable_programs::huge::{GIB, HUGE};
use roundtable_programs::mem::{FIXED, NORESERVE, R, RW, SHARED, mmap, mprotect};

use crate::saying::{advice, audit, expect, file_of, table};
use crate::scene::{
    FEW, PLACE, expect_faults, faults_at, faults_of_a_new_one, filled, filled_at, map_at, stays, touch,
};

pub fn shared_by_congruent_mappings() {
    let (file, name) = filled(GIB, 512);
    let _sharers: Vec<Child> = (0..3)
        .map(|index| {
            stays(|| {
                map_at(PLACE + index * 4 * GIB, GIB, RW, SHARED, &file);
                touch(PLACE + index * 4 * GIB, 512);
            })
        })
        .collect();
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("shared", 3)]);
    assert_eq!(seen["evidence"], "kpagecount");
    assert_eq!(seen["processes"], 3);
    assert_eq!((&seen["tables"]["now"]["pmd"], &seen["tables"]["unshared"]["pmd"]), (&1.into(), &3.into()));
    assert_eq!(seen["tables"]["best_here"]["pmd"], 1);
    let place = PLACE + 64 * GIB;
    expect_faults(faults_of_a_new_one(|| map_at(place, GIB, RW, SHARED, &file), place, 512), 1);
    let text = table();
    assert!(text.contains("3 shared") && text.contains(&name), "{text}");
}

pub fn not_congruent() {
    let (file, name) = filled(GIB, 512);
    let first = stays(|| {
        map_at(PLACE, 2 * GIB, RW, SHARED, &file);
        touch(PLACE, 512);
    });
    let second = stays(|| {
        map_at(PLACE + 4 * GIB + HUGE, 2 * GIB, RW, SHARED, &file);
        touch(PLACE + 4 * GIB + HUGE, 512);
    });
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    // The second one's 512 pages lie in two slots, of which the first is not filled.
    expect(seen, &[("not_congruent", 2), ("too_short", 1), ("untouched", 2)]);
    let steps = advice(&report, &name, "same-address")["steps"].to_string();
    assert!(steps.contains("0x40000000"), "{steps}");
    drop((first, second));
    let _first = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, 512);
    });
    let place = PLACE + 64 * GIB + HUGE;
    expect_faults(faults_of_a_new_one(|| map_at(place, GIB, RW, SHARED, &file), place, 512), 512);
}

pub fn too_short() {
    let (file, name) = filled(GIB / 2, FEW);
    let _sharers: Vec<Child> = (0..2)
        .map(|_| {
            stays(|| {
                map_at(PLACE, GIB / 2, RW, SHARED, &file);
                touch(PLACE, FEW);
            })
        })
        .collect();
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("too_short", 2)]);
    let steps = advice(&report, &name, "fill-slots")["steps"].to_string();
    assert!(steps.contains("Make it 1 GiB instead of 512 MiB"), "{steps}");
    expect_faults(faults_of_a_new_one(|| map_at(PLACE, GIB / 2, RW, SHARED, &file), PLACE, FEW), FEW as u32);
}

pub fn table_from_before() {
    let (file, name) = filled(GIB, FEW);
    let _first = stays(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    // By the rules the two could share; but the second one's table dates from the time when it only read.
    let _second = stays(|| {
        map_at(PLACE, GIB, R, SHARED, &file);
        touch(PLACE, FEW);
        mprotect(PLACE, GIB, RW).expect("mprotect");
    });
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("own_table", 2)]);
    assert_eq!(seen["tables"]["now"]["pmd"], 2);
}

pub fn first_of_several_and_untouched() {
    let (file, name) = filled(2 * GIB, FEW);
    let _first = stays(|| {
        map_at(PLACE, 2 * GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    });
    let _second = stays(|| map_at(PLACE, 2 * GIB, RW, SHARED, &file));
    let report = audit();
    expect(file_of(&report, "huge", &name), &[("first_of_several", 1), ("untouched", 3)]);
    expect_faults(faults_of_a_new_one(|| map_at(PLACE, 2 * GIB, RW, SHARED, &file), PLACE, FEW), 1);
}

/// All but the file's first page, at an address of its own: the offset counts for congruence.
pub fn part_of_the_file() {
    let (file, name) = filled_at(2 * GIB, &[GIB], FEW);
    let place = PLACE + 8 * GIB;
    let map_part = || {
        let (address, length) = (place + HUGE, 2 * GIB - HUGE);
        mmap(address, length, RW, SHARED | FIXED | NORESERVE, file.raw(), HUGE as i64).expect("mmap");
    };
    let _whole = stays(|| {
        map_at(PLACE, 2 * GIB, RW, SHARED, &file);
        touch(PLACE + GIB, FEW);
    });
    let _part = stays(|| {
        map_part();
        touch(place + GIB, FEW);
    });
    let report = audit();
    expect(file_of(&report, "huge", &name), &[("shared", 2), ("untouched", 2)]);
    expect_faults(faults_of_a_new_one(map_part, place + GIB, FEW), 1);
}

/// The mapping comes by fork, as PostgreSQL's does; one child has not touched it.
pub fn forked_processes() {
    let (file, name) = filled_at(2 * GIB, &[0, GIB], FEW);
    let places = [PLACE, PLACE + GIB];
    let touch_all = || places.iter().for_each(|&place| touch(place, FEW));
    map_at(PLACE, 2 * GIB, RW, SHARED, &file);
    touch_all();
    let _children = [stays(touch_all), stays(touch_all), stays(|| ())];
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("shared", 6), ("untouched", 2)]);
    assert_eq!((&seen["processes"], &seen["tables"]["now"]["pmd"]), (&4.into(), &2.into()));
    expect_faults(faults_at(|| (), &places, FEW), 2);
}
