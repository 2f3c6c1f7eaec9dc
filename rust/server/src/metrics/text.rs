//! Writes a page: OpenMetrics 1.0, and the same in Prometheus's older text format 0.0.4.
//!
//! Pure. Values are integers or exact decimals; what stands in a label cannot end its line.

use std::fmt::{Display, Write};

use super::counts::{BOUNDS, Spread};

const TAKES_ALL: &str = "a string takes everything";

/// What a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    Summary,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
        }
    }
}

/// Names and values.
pub(super) type Labels<'a> = [(&'a str, &'a str)];

/// Nanoseconds as seconds.
pub(super) struct Seconds(pub(super) u64);

impl Display for Seconds {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// A page that is being written, as OpenMetrics.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
    /// Of the family that is being written.
    name: &'static str,
    kind: Option<Kind>,
}

impl Page {
    /// Begins a family. Its name ends in its unit, and never in `_total`.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        (self.name, self.kind) = (name, Some(kind));
        self.line(format_args!("# TYPE {name} {}", kind.name()));
        self.line(format_args!("# HELP {name} {help}"));
    }

    /// A sample of the family.
    pub(super) fn sample(&mut self, labels: &Labels<'_>, value: impl Display) {
        let suffix = if self.kind == Some(Kind::Counter) { "_total" } else { "" };
        self.put(suffix, labels, None, value);
    }

    /// A family of one sample without labels.
    pub(super) fn one(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    /// The samples of a histogram.
    pub(super) fn spread(&mut self, labels: &Labels<'_>, spread: &Spread) {
        let mut count = 0;
        let bounds = BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
        for (bucket, bound) in spread.buckets.iter().zip(bounds) {
            count += bucket;
            self.put("_bucket", labels, Some(("le", bound)), count);
        }
        self.summary(labels, count, spread.sum_ns);
    }

    /// How often something was done, and how long that took in all.
    pub(super) fn summary(&mut self, labels: &Labels<'_>, count: u64, sum_ns: u64) {
        self.put("_count", labels, None, count);
        self.put("_sum", labels, None, Seconds(sum_ns));
    }

    /// Families that somebody else has written, without their end.
    pub(super) fn append(&mut self, families: &str) {
        let families = families.trim_end().trim_end_matches("# EOF");
        self.text.push_str(families);
        if !families.is_empty() && !families.ends_with('\n') {
            self.text.push('\n');
        }
    }

    /// The page.
    pub(super) fn end(mut self) -> String {
        self.text.push_str("# EOF\n");
        self.text
    }

    fn put(
        &mut self,
        suffix: &str,
        labels: &Labels<'_>,
        last: Option<(&str, &str)>,
        value: impl Display,
    ) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let mut separator = '{';
        for (name, text) in labels.iter().copied().chain(last) {
            self.text.push(separator);
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(&mut self.text, text);
            self.text.push('"');
            separator = ',';
        }
        self.text.push_str(if separator == ',' { "} " } else { " " });
        self.line(format_args!("{value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.text.write_fmt(line).expect(TAKES_ALL);
        self.text.push('\n');
    }
}

fn escape(to: &mut String, text: &str) {
    for one in text.chars() {
        match one {
            '\\' => to.push_str(r"\\"),
            '"' => to.push_str("\\\""),
            '\n' => to.push_str(r"\n"),
            other => to.push(other),
        }
    }
}

/// The same page in text format 0.0.4: a counter has its `_total` in its name there, and there are no
/// units.
pub(super) fn older(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut counter = "";
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT"), ..) | (Some("#"), Some("EOF"), None, None) => continue,
            (Some("#"), Some("TYPE"), Some(name), Some("counter")) => {
                counter = name;
                write!(text, "# TYPE {name}_total counter").expect(TAKES_ALL);
            }
            (Some("#"), Some("HELP"), Some(name), help) if name == counter => {
                let help = help.unwrap_or_default();
                write!(text, "# HELP {name}_total {help}").expect(TAKES_ALL);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_in_both_formats() {
        let mut page = Page::default();
        page.family("bursar_x", Kind::Counter, "What.");
        page.sample(&[("a", "1\"\\\n2"), ("b", "ü")], 7);
        page.one("bursar_y_seconds", Kind::Gauge, "When.", Seconds(1_000_000_001));
        page.append("# TYPE z gauge\n# UNIT z bytes\nz 1\n# EOF\n");
        let page = page.end();
        let expected = "# TYPE bursar_x counter\n# HELP bursar_x What.\n\
            bursar_x_total{a=\"1\\\"\\\\\\n2\",b=\"ü\"} 7\n\
            # TYPE bursar_y_seconds gauge\n# HELP bursar_y_seconds When.\n\
            bursar_y_seconds 1.000000001\n\
            # TYPE z gauge\n# UNIT z bytes\nz 1\n# EOF\n";
        assert_eq!(page, expected);
        let expected = expected
            .replace("# TYPE bursar_x c", "# TYPE bursar_x_total c")
            .replace("# HELP bursar_x W", "# HELP bursar_x_total W")
            .replace("# UNIT z bytes\n", "")
            .replace("# EOF\n", "");
        assert_eq!(older(&page), expected);
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_in_its_count() {
        let mut page = Page::default();
        page.family("h_seconds", Kind::Histogram, "How long.");
        let mut spread = Spread { sum_ns: 5, ..Spread::default() };
        (spread.buckets[0], spread.buckets[BOUNDS.len()]) = (2, 3);
        page.spread(&[("m", "x")], &spread);
        let text = page.end();
        assert!(text.contains("h_seconds_bucket{m=\"x\",le=\"1e-05\"} 2\n"), "{text}");
        assert!(text.contains("h_seconds_bucket{m=\"x\",le=\"10.0\"} 2\n"), "{text}");
        assert!(text.contains("h_seconds_bucket{m=\"x\",le=\"+Inf\"} 5\n"), "{text}");
        assert!(
            text.ends_with(
                "h_seconds_count{m=\"x\"} 5\nh_seconds_sum{m=\"x\"} 0.000000005\n# EOF\n"
            )
        );
    }
}
