//! The files of the page, embedded in the binary.

use std::sync::LazyLock;

use actix_web::http::header::{self, CacheControl, CacheDirective, ETag, EntityTag, Header, IfNoneMatch};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use sha2::{Digest, Sha256};

use super::errors::DemoError;
use crate::server::http::ChunkedBody;

// `PAGE`: name and bytes of every file in assets/page, written by build.rs.
include!(concat!(env!("OUT_DIR"), "/page.rs"));

/// The page that "Read the sample page" sends.
const SAMPLE: (&str, &[u8]) = (
    "sample.png",
    include_bytes!("../../../datasets/sample/discharge_note.png"),
);
const INDEX: &str = "index.html";
/// Everything is this server's own; no inline scripts or styles, no frames, no forms that leave the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct Asset {
    name: &'static str,
    bytes: &'static [u8],
    content_type: &'static str,
    tag: EntityTag,
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let files = PAGE.iter().chain([&SAMPLE]);
    let assets = files.map(|&(name, bytes)| Asset {
        name,
        bytes,
        content_type: content_type(name).unwrap_or("application/octet-stream"),
        tag: tag_of(bytes),
    });
    assets.collect()
});

fn content_type(name: &str) -> Option<&'static str> {
    Some(match name.rsplit_once('.')?.1 {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        _ => return None,
    })
}

fn tag_of(bytes: &[u8]) -> EntityTag {
    let digest = Sha256::digest(bytes);
    let digits = digest[..8].iter().map(|byte| format!("{byte:02x}"));
    EntityTag::new_strong(digits.collect())
}

/// One file of the page; the empty name is its index.
pub(super) async fn asset(request: HttpRequest, name: web::Path<String>) -> Result<HttpResponse, DemoError> {
    let name = if name.is_empty() { INDEX } else { name.as_str() };
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    let asset = asset.ok_or(DemoError::NoFile)?;
    let mut response = match is_known(&request, &asset.tag) {
        true => HttpResponse::NotModified(),
        false => HttpResponse::Ok(),
    };
    response
        .insert_header(ETag(asset.tag.clone()))
        .insert_header(CacheControl(vec![CacheDirective::NoCache]))
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY));
    if is_known(&request, &asset.tag) {
        return Ok(response.finish());
    }
    Ok(response
        .content_type(asset.content_type)
        .body(ChunkedBody::shared(Bytes::from_static(asset.bytes))))
}

/// Whether the browser's cached copy has this tag.
fn is_known(request: &HttpRequest, tag: &EntityTag) -> bool {
    match IfNoneMatch::parse(request) {
        Ok(IfNoneMatch::Any) => true,
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|known| known.weak_eq(tag)),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_page_is_embedded_with_a_type() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/page");
        let files = std::fs::read_dir(folder).expect("assets/page");
        let names = files.map(|file| file.expect("a file").file_name().into_string().expect("UTF-8"));
        let embedded: BTreeSet<String> = PAGE.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(embedded, names.collect());
        assert!(embedded.contains(INDEX));
        for asset in ASSETS.iter() {
            assert!(content_type(asset.name).is_some(), "{}: which type?", asset.name);
            assert!(!asset.bytes.is_empty(), "{}", asset.name);
        }
    }

    #[test]
    fn the_page_is_small() {
        let bytes: usize = PAGE.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= 150 * 1024, "{bytes} bytes");
    }
}
