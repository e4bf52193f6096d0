//! Draws reports: a bar per program, its spread as a line across the end of it.

use std::fmt::Write as _;

use crate::machine::Machine;
use crate::report::{Better, Report, short};

const WIDTH: f64 = 860.0;
const LABEL: f64 = 190.0;
const BAR: f64 = 430.0;
const LINE: f64 = 24.0;

/// One picture of all rows.
pub(crate) fn draw(machine: &Machine, reports: &[Report]) -> String {
    let mut inner = String::new();
    let mut y = LINE;
    text(&mut inner, 8.0, y, "#444", &machine.to_string());
    for report in reports {
        y += 1.8 * LINE;
        let better = match report.better {
            Better::Higher => "more is better",
            Better::Lower => "less is better",
        };
        text(&mut inner, 8.0, y, "#000", &format!("{} ({}, {better})", report.title, report.unit));
        let most = report.figures.iter().map(|figure| figure.spread().most).fold(0.0, f64::max);
        for (index, figure) in report.figures.iter().enumerate() {
            y += LINE;
            let spread = figure.spread();
            let x = |value: f64| LABEL + if most > 0.0 { value / most * BAR } else { 0.0 };
            let color = match (&figure.invalid, index) {
                (Some(_), _) => "#ccc",
                (None, 0) => "#5b4bdb",
                (None, _) => "#9a9a9a",
            };
            text(&mut inner, 16.0, y, "#000", &figure.who);
            let (top, width) = (y - 12.0, x(spread.median) - LABEL);
            push(
                &mut inner,
                format_args!(
                    r#"<rect x="{LABEL}" y="{top:.1}" width="{width:.1}" height="14" fill="{color}"/>"#
                ),
            );
            let (middle, from, to) = (y - 5.0, x(spread.least), x(spread.most));
            push(
                &mut inner,
                format_args!(
                    r##"<line x1="{from:.1}" x2="{to:.1}" y1="{middle:.1}" y2="{middle:.1}" stroke="#000"/>"##
                ),
            );
            let note = if figure.invalid.is_some() { " INVALID" } else { "" };
            text(&mut inner, to + 6.0, y, "#000", &format!("{}{note}", short(spread.median)));
        }
        for (who, _) in &report.skipped {
            y += LINE;
            text(&mut inner, 16.0, y, "#888", &format!("{who}: SKIPPED"));
        }
    }
    let height = y + LINE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n{inner}</svg>\n"
    )
}

fn text(out: &mut String, x: f64, y: f64, color: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    push(out, format_args!(r#"<text x="{x:.1}" y="{y:.1}" fill="{color}">{words}</text>"#));
}

fn push(out: &mut String, element: std::fmt::Arguments<'_>) {
    // Writing to a string can't fail.
    let _infallible = writeln!(out, "{element}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Figure;

    #[test]
    fn bars_are_in_proportion_and_what_does_not_count_says_so() {
        let figures = vec![
            Figure::new("skein", "1", "a", vec![50.0]),
            Figure::new("a & b", "1", "a", vec![100.0]).saturating(vec![0.5]),
        ];
        let report = Report::new("one hop", "requests/s", Better::Higher, String::new());
        let report = report.with(figures, vec![("pingora".into(), "not built".into())]);
        let svg = draw(&Machine::read().unwrap(), &[report]);
        assert!(svg.contains(r#"width="215.0""#) && svg.contains(r#"width="430.0""#), "{svg}");
        assert!(
            svg.contains("a &amp; b") && svg.contains("INVALID") && svg.contains("pingora: SKIPPED"),
            "{svg}"
        );
    }
}
