//! Requests that are well-formed HTTP and refused all the same, because proxies and apps do not read
//! them alike (SPEC HTTP-8).
//!
//! What the HTTP library refuses by itself never gets here: malformed lines and lengths, a
//! `Transfer-Encoding` that does not end in `chunked`, heads beyond its limits. Nor does what it keeps to
//! itself: see `heads`.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Uri};

/// Why such a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A transfer coding other than `chunked` alone: the app would get bytes that are still coded.
    #[error("chunked is the only transfer coding that is taken, and only once")]
    TransferEncoding,
    /// Two lengths, which HTTP/2 lets through when they are equal.
    #[error("Content-Length is to be said once")]
    ContentLength,
    /// A target of a form that its method does not have (RFC 9112 section 3.2).
    #[error("the request target must be a path that begins with /, or an http or https URL")]
    Target,
    /// The target is too long.
    #[error("the request target is longer than {limit} bytes")]
    LongTarget {
        /// What is allowed, in bytes.
        limit: usize,
    },
}

/// Looks at a request's head; `max_target` is in bytes. `CONNECT` is not for here.
///
/// # Errors
/// [`Refusal`].
pub fn check(method: &Method, uri: &Uri, headers: &HeaderMap, max_target: usize) -> Result<(), Refusal> {
    let is_path = uri.path().starts_with('/') || (uri.path() == "*" && *method == Method::OPTIONS);
    let named = match uri.authority() {
        None => true,
        Some(_) => {
            let web =
                |scheme: &str| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
            uri.scheme_str().is_some_and(web)
        }
    };
    if !is_path || !named {
        return Err(Refusal::Target);
    }
    let path = uri.path_and_query().map_or("", |target| target.as_str());
    let length = path.len() + uri.authority().map_or(0, |authority| authority.as_str().len());
    if length > max_target {
        return Err(Refusal::LongTarget { limit: max_target });
    }
    // Most heads repeat no field.
    if headers.len() > headers.keys_len() && headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Refusal::ContentLength);
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if one.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        (Some(_), _) => Err(Refusal::TransferEncoding),
    }
}

/// A response's framing that leaves open what its body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunked is the only transfer coding of a response that is taken, and only once")]
pub struct Unclear;

/// Looks at a Machine's response and takes away a `Content-Length` that its chunks make void
/// (RFC 9112 section 6.3), and repetitions of an equal one.
///
/// # Errors
/// [`Unclear`]: the body would reach the client still coded, and without a word that it is.
pub fn check_response(headers: &mut HeaderMap) -> Result<(), Unclear> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => {
            // Most heads repeat no field.
            if headers.len() > headers.keys_len()
                && let Some(length) = headers.get(CONTENT_LENGTH).cloned()
            {
                headers.insert(CONTENT_LENGTH, length);
            }
            Ok(())
        }
        (Some(one), None) if one.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            headers.remove(CONTENT_LENGTH);
            Ok(())
        }
        (Some(_), _) => Err(Unclear),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn checked(method: &str, target: &str, codings: &[&'static str]) -> Result<(), Refusal> {
        let mut headers = HeaderMap::new();
        for coding in codings {
            headers.append(TRANSFER_ENCODING, HeaderValue::from_static(coding));
        }
        check(&method.parse().unwrap(), &target.parse().unwrap(), &headers, 20)
    }

    #[test]
    fn http_8_targets_have_the_form_that_rfc_9112_gives_them() {
        for good in ["/", "/a?b=c", "//a", "http://a.localhost/", "https://a.localhost", "HTTP://a/"] {
            assert_eq!(checked("GET", good, &[]), Ok(()), "{good}");
        }
        assert_eq!(checked("OPTIONS", "*", &[]), Ok(()));
        for bad in ["*", "a.localhost:80", "ftp://a/"] {
            assert_eq!(checked("GET", bad, &[]), Err(Refusal::Target), "{bad}");
        }
    }

    #[test]
    fn http_8_a_target_has_a_limit() {
        assert_eq!(checked("GET", "/234567890123456789_", &[]), Ok(()));
        let long = Err(Refusal::LongTarget { limit: 20 });
        assert_eq!(checked("GET", "/234567890123456789_1", &[]), long);
        assert_eq!(checked("GET", "http://a.localhost/90_", &[]), Ok(()), "the scheme does not count");
        assert_eq!(checked("GET", "http://a.localhost/9012345678_", &[]), long);
    }

    #[test]
    fn http_8_a_response_says_one_thing_about_its_body() {
        let checked = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_static(value));
            }
            check_response(&mut headers).map(|()| {
                let value = |(name, value): (_, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
                headers.iter().map(value).collect::<Vec<_>>().join(", ")
            })
        };
        let (length, chunked) = (("content-length", "5"), ("transfer-encoding", "chunked"));
        assert_eq!(checked(&[length]).unwrap(), "content-length: 5");
        assert_eq!(checked(&[length, length]).unwrap(), "content-length: 5");
        assert_eq!(checked(&[length, chunked]).unwrap(), "transfer-encoding: chunked");
        assert_eq!(checked(&[("transfer-encoding", "gzip, chunked")]), Err(Unclear));
        assert_eq!(checked(&[("transfer-encoding", "gzip")]), Err(Unclear));
        assert_eq!(checked(&[chunked, chunked]), Err(Unclear));
    }

    #[test]
    fn http_8_a_length_is_said_once() {
        let mut headers = HeaderMap::new();
        headers.append(CONTENT_LENGTH, HeaderValue::from_static("3"));
        headers.append("x-a", HeaderValue::from_static("3"));
        headers.append("x-a", HeaderValue::from_static("3"));
        let checked = |headers: &HeaderMap| check(&Method::POST, &Uri::from_static("/"), headers, 20);
        assert_eq!(checked(&headers), Ok(()));
        headers.append(CONTENT_LENGTH, HeaderValue::from_static("3"));
        assert_eq!(checked(&headers), Err(Refusal::ContentLength));
    }

    #[test]
    fn http_8_chunked_is_the_only_transfer_coding() {
        for good in [&[][..], &["chunked"], &["Chunked"], &[" chunked "]] {
            assert_eq!(checked("POST", "/", good), Ok(()), "{good:?}");
        }
        for bad in [
            &["gzip, chunked"][..],
            &["chunked, chunked"],
            &["identity", "chunked"],
            &["chunked", "chunked"],
            &[""],
        ] {
            assert_eq!(checked("POST", "/", bad), Err(Refusal::TransferEncoding), "{bad:?}");
        }
    }
}
