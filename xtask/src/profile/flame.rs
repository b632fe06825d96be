//! Flame graphs as SVG text: a box for each function in each stack, as wide as its instructions, above its caller.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Stacks;

const WIDTH: f64 = 1200.0;
const ROW: f64 = 17.0;
const HEAD: f64 = 28.0;
/// A letter's width.
const LETTER: f64 = 6.6;
/// Narrower boxes are left out.
const NARROWEST: f64 = 0.4;

/// A function in a stack.
#[derive(Default)]
struct Node<'s> {
    count: u64,
    children: BTreeMap<&'s str, Node<'s>>,
}

impl Node<'_> {
    fn depth(&self) -> usize {
        1 + self.children.values().map(Node::depth).max().unwrap_or(0)
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A function's name with the last two parts of each path in it.
fn short(name: &str) -> String {
    let mut out = String::new();
    let mut path = String::new();
    for letter in name.chars().chain([' ']) {
        if letter.is_alphanumeric() || letter == '_' || letter == ':' {
            path.push(letter);
            continue;
        }
        let parts: Vec<&str> = path.split("::").collect();
        out += &parts[parts.len().saturating_sub(2)..].join("::");
        path.clear();
        out.push(letter);
    }
    out.pop();
    out
}

/// Draws the stacks of an operation.
pub fn draw(title: &str, stacks: &Stacks) -> String {
    let mut root = Node::default();
    for (stack, count) in stacks {
        let mut node = &mut root;
        node.count += count;
        for function in stack {
            node = node.children.entry(function).or_default();
            node.count += count;
        }
    }
    let height = HEAD + ROW * root.depth() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"4\" y=\"18\" font-size=\"14\">{}: {} instructions</text>\n",
        escape(title),
        root.count
    );
    if root.count > 0 {
        boxes(&mut svg, &root, 0.0, height - ROW, WIDTH / root.count as f64);
    }
    svg + "</svg>\n"
}

/// Draws the boxes above a node that begins at `x`; theirs begin at `y`.
fn boxes(svg: &mut String, node: &Node, mut x: f64, y: f64, scale: f64) {
    for (name, child) in &node.children {
        let width = child.count as f64 * scale;
        if width >= NARROWEST {
            let text: String = short(name).chars().take(((width - 4.0).max(0.0) / LETTER) as usize).collect();
            let _ = writeln!(
                svg,
                "<g><title>{}: {}</title><rect x=\"{x:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{}</text></g>",
                escape(name),
                child.count,
                (width - 0.5).max(0.3),
                ROW - 1.0,
                colour(name),
                x + 2.0,
                y + 12.0,
                escape(&text)
            );
            boxes(svg, child, x, y - ROW, scale);
        }
        x += width;
    }
}

/// A warm colour that is always the same for a function.
fn colour(name: &str) -> String {
    let hash = name.bytes().fold(17u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    format!("hsl({},{}%,{}%)", 15 + hash % 40, 75 + hash / 64 % 20, 62 + hash / 4096 % 14)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_as_wide_as_its_share() {
        let stack = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let stacks = Stacks::from([(stack(&["a", "<b>"]), 300), (stack(&["a"]), 100), (stack(&["c"]), 0)]);
        let svg = draw("fork & exit", &stacks);
        assert!(svg.starts_with("<svg") && svg.contains("fork &amp; exit: 400 instructions"));
        assert!(svg.contains("<title>a: 400</title><rect x=\"0.0\"") && svg.contains("width=\"1199.5\""));
        assert!(svg.contains("<title>&lt;b&gt;: 300</title>") && svg.contains("width=\"899.5\""));
        assert!(!svg.contains("<title>c"));
    }

    #[test]
    fn names_lose_the_folders_of_types() {
        assert_eq!(short("kernel::mm::space::Space::fork"), "Space::fork");
        assert_eq!(
            short("<alloc::sync::Arc<kernel::mm::Vma> as core::ops::Drop>::drop"),
            "<sync::Arc<mm::Vma> as ops::Drop>::drop"
        );
        assert_eq!(short("memcpy"), "memcpy");
    }
}
