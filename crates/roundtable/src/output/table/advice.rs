//! What to do, as paragraphs that can be followed from the top to the bottom.

use std::fmt::Write;

use crate::audit::advice::Advice;
use crate::audit::report::Report;
use crate::output::human;

/// All of it.
pub fn text(out: &mut String, report: &Report) {
    advices(out, &report.advice.iter().collect::<Vec<_>>());
}

/// Some of it.
pub fn advices(out: &mut String, advices: &[&Advice]) {
    if advices.is_empty() {
        return;
    }
    out.push_str("\nWhat to do, in this order\n");
    for (index, advice) in advices.iter().enumerate() {
        paragraph(out, index + 1, advice);
    }
}

fn paragraph(out: &mut String, number: usize, advice: &Advice) {
    let about = match (advice.subject.file.is_empty(), advice.subject.programs.is_empty()) {
        (false, false) => {
            format!("{}, {}", advice.subject.describe(), human::printable(&advice.subject.file))
        }
        _ => advice.subject.describe(),
    };
    let _ = writeln!(out, "\n{number}. {} ({about})", advice.id);
    let _ = writeln!(out, "   {}", advice.situation);
    for (index, step) in advice.steps.iter().enumerate() {
        let letter = char::from(b'a' + (index % 26) as u8);
        let _ = writeln!(out, "   {letter}) {}", step.what);
        for command in &step.commands {
            let _ = writeln!(out, "        {command}");
        }
    }
    let mut worth = Vec::new();
    if advice.gain > 0 {
        worth.push(format!("saves {} of page tables", human::bytes(advice.gain)));
    }
    if advice.frees > 0 {
        worth.push(format!("frees {} of huge pages", human::bytes(advice.frees)));
    }
    if advice.cost > 0 {
        worth.push(format!("takes {} of memory", human::bytes(advice.cost)));
    }
    if !worth.is_empty() {
        let _ = writeln!(out, "   {}; {}", worth.join(", "), advice.source);
    } else {
        let _ = writeln!(out, "   {}", advice.source);
    }
}
