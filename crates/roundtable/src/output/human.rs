//! Numbers as people read them.

/// Bytes in the largest unit that leaves a number of at least one: `39.1 GiB`, `512 B`. Whole numbers have no fraction.
pub fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    while unit + 1 < units.len() && bytes >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    let one = 1u64 << (10 * unit);
    let tenths = (u128::from(bytes) * 10 + u128::from(one) / 2) / u128::from(one);
    // 1023.96 KiB is 1 MiB to a reader.
    if tenths >= 10240 && unit + 1 < units.len() {
        return format!("1 {}", units[unit + 1]);
    }
    if bytes.is_multiple_of(one) || tenths % 10 == 0 && tenths >= 1000 {
        format!("{} {}", tenths / 10, units[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
    }
}

/// A number with its thousands set apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// How far `value` is from `reference`, in percent with a sign.
pub fn difference(value: u64, reference: u64) -> String {
    if reference == 0 {
        return if value == 0 { "+0.0 %".into() } else { "-".into() };
    }
    format!("{:+.1} %", (value as f64 / reference as f64 - 1.0) * 100.0)
}

/// A time in its largest unit: `5 s`, `3 min`, `2 h`, `9 days`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", count(seconds / 86400)),
    }
}

/// `1 process`, `2 processes`.
pub fn processes(number: u64) -> String {
    if number == 1 { "1 process".into() } else { format!("{} processes", count(number)) }
}

/// Of a longer name the middle is left out; --json has all of it.
const LONGEST: usize = 64;
/// That of a container in Kubernetes' control groups has some 200.
const LONGEST_PATH: usize = 255;
/// What stands there.
const CUT: &str = "...";

/// A name without what a terminal would obey, without what shows other text than is there, and no longer than a table can
/// show: anybody may give a file or a process any name.
pub fn printable(name: &str) -> String {
    printable_up_to(name, LONGEST)
}

/// The same of a path that the reader has to find: it stands in a sentence, and more of it is kept.
pub fn printable_path(path: &str) -> String {
    printable_up_to(path, LONGEST_PATH)
}

fn printable_up_to(name: &str, longest: usize) -> String {
    let shown = |c: char| if c.is_control() || is_invisible(c) || is_line(c) { '?' } else { c };
    let count = name.chars().count();
    if count <= longest {
        return name.chars().map(shown).collect();
    }
    let kept = longest - CUT.len();
    let (before, behind) = (kept / 2, kept - kept / 2);
    let behind = name.chars().skip(count - behind).map(shown);
    name.chars().take(before).map(shown).chain(CUT.chars()).chain(behind).collect()
}

/// Lines and corners, as tables are drawn with.
fn is_line(c: char) -> bool {
    matches!(c, '\u{2500}'..='\u{257f}')
}

/// Characters that are not seen, or that change the order in which others are.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_to_a_tenth() {
        for (number, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (4096, "4 KiB"),
            (1536, "1.5 KiB"),
            (41_943_040_000, "39.1 GiB"),
            (1 << 40, "1 TiB"),
            ((1 << 20) - 1, "1 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(number), text, "{number}");
        }
    }

    #[test]
    fn names_show_what_they_are() {
        // A name that looks like another: its end is shown from the right to the left.
        assert_eq!(printable("sga\u{202e}gol.tpo"), "sga?gol.tpo");
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{9b}d\u{200b}e\u{feff}"), "a?[2Jb?c?d?e?");
        assert_eq!(printable("Größe 表 é"), "Größe 表 é");
        // Cells that are none.
        assert_eq!(printable("a │ 99 GiB ┆ b"), "a ? 99 GiB ? b");
        let long = format!("/start/{}/end", "ö".repeat(4000));
        assert_eq!(printable(&long).chars().count(), LONGEST);
        assert!(printable(&long).starts_with("/start/ö") && printable(&long).ends_with("ö/end"));
        assert_eq!(printable(&"a".repeat(LONGEST)), "a".repeat(LONGEST));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1234567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(difference(105, 100), "+5.0 %");
        assert_eq!(difference(98, 100), "-2.0 %");
    }
}
