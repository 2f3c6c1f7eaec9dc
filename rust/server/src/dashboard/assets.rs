//! The page: its files, compiled in, and how browsers keep them.

use std::fmt;

use bytes::Bytes;
use hyper::{HeaderMap, Response, StatusCode, header};
use xxhash_rust::xxh3::xxh3_128;

use super::gzip;
use crate::proxy::Reply;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! asset {
    ($name:literal, $kind:expr) => {
        (concat!("/assets/", $name), $kind, include_str!(concat!("assets/", $name)))
    };
}

/// Path, media type and text; the first is the page itself.
const FILES: [(&str, &str, &str); 16] = [
    ("/", HTML, include_str!("assets/index.html")),
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
    asset!("app.js", SCRIPT),
    asset!("api.js", SCRIPT),
    asset!("accounts.js", SCRIPT),
    asset!("budget.js", SCRIPT),
    asset!("detail.js", SCRIPT),
    asset!("dialogs.js", SCRIPT),
    asset!("dom.js", SCRIPT),
    asset!("entries.js", SCRIPT),
    asset!("gpus.js", SCRIPT),
    asset!("history.js", SCRIPT),
    asset!("lists.js", SCRIPT),
    asset!("store.js", SCRIPT),
    asset!("units.js", SCRIPT),
];

/// All files.
pub(super) struct Assets(Vec<File>);

struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
    /// The text by gzip.
    packed: Bytes,
    /// Changes with the text; weak, since it stands for both.
    tag: String,
}

impl fmt::Debug for Assets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Assets(…)")
    }
}

impl Assets {
    pub(super) fn new() -> Assets {
        let file = |(path, kind, text): (&'static str, &'static str, &'static str)| {
            let tag = format!("W/\"{:032x}\"", xxh3_128(text.as_bytes()));
            File { path, kind, text, packed: gzip::file(text.as_bytes()), tag }
        };
        Assets(FILES.into_iter().map(file).collect())
    }

    /// The file of a path; without its text where the browser has it.
    pub(super) fn find(&self, path: &str, headers: &HeaderMap) -> Option<Response<Reply>> {
        let File { kind, text, packed, tag, .. } = self.0.iter().find(|file| file.path == path)?;
        let has = headers.get(header::IF_NONE_MATCH).is_some_and(|has| has == tag.as_str());
        let mut response = Response::builder()
            .status(if has { StatusCode::NOT_MODIFIED } else { StatusCode::OK })
            .header(header::CONTENT_TYPE, *kind)
            .header(header::ETAG, tag)
            .header(header::VARY, "accept-encoding")
            .header(header::CACHE_CONTROL, "no-cache");
        let body = if has {
            Bytes::new()
        } else if gzip::is_taken(headers) {
            response = response.header(header::CONTENT_ENCODING, "gzip");
            packed.clone()
        } else {
            Bytes::from_static(text.as_bytes())
        };
        response.body(Reply::whole(body)).ok()
    }
}
