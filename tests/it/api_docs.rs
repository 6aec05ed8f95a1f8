//! The documentation of the API: the OpenAPI document, and Swagger UI from the binary itself.
use crate::fleet::Fleet;

#[tokio::test]
async fn the_document_is_that_of_the_binary() {
    let fleet = Fleet::start(1).await;
    let served = fleet[0].get("/openapi.json").send().await.expect(200);
    assert_eq!(served.header("content-type"), Some("application/json"));
    let printed = fleet.command(&["openapi"], &[]).await.expect_code(0).json();
    assert_eq!(served.json(), printed);
    assert!(printed["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")));
    for (path, method) in [
        ("/auth/register", "post"),
        ("/auth/login", "post"),
        ("/login", "post"),
        ("/auth/logout", "post"),
        ("/logout", "post"),
        ("/profile", "get"),
    ] {
        assert!(printed["paths"][path][method].is_object(), "{method} {path}");
    }
}

/// The pages load nothing from other servers, and this server has everything that they load.
#[tokio::test]
async fn swagger_ui_comes_from_the_binary_alone() {
    let fleet = Fleet::start(1).await;
    let follow = async |mut path: String| {
        loop {
            let answer = fleet[0].get(&path).send().await;
            match answer.header("location") {
                Some(location) if (300..400).contains(&answer.status) => path = location.to_owned(),
                _ => return (path, answer.expect(200)),
            }
        }
    };
    for entrance in ["/docs", "/docs/", "/docs/index.html"] {
        let (at, page) = follow(entrance.to_owned()).await;
        assert!(at.starts_with("/docs/"), "{entrance} leads to {at}");
        assert!(page.text().contains("swagger-ui"), "{entrance}");
    }
    let page = fleet[0].get("/docs/").send().await.expect(200).text();
    let mut loaded = 0;
    for attribute in ["src=\"", "href=\""] {
        for link in page.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(!link.contains("//"), "{link} is elsewhere");
            let path = format!("/docs/{}", link.trim_start_matches("./"));
            fleet[0].get(&path).send().await.expect(200);
            loaded += 1;
        }
    }
    assert!(loaded >= 4, "{page}");
    let settings = fleet[0].get("/docs/swagger-initializer.js").send().await.expect(200).text();
    assert!(settings.contains("/openapi.json"), "{settings}");
    assert!(settings.replace(' ', "").contains(r#""validatorUrl":"none""#), "the document is sent nowhere: {settings}");
    assert!(!settings.contains("://"), "{settings}");
}

/// Swagger UI is large: browsers keep it, and it can be switched off.
#[tokio::test]
async fn the_documentation_is_cached_and_can_be_switched_off() {
    let fleet = Fleet::builder().start().await;
    for (path, caching) in [
        ("/docs/swagger-ui-bundle.js", "public, max-age=604800"),
        ("/docs/swagger-ui.css", "public, max-age=604800"),
        ("/docs/", "no-cache"),
        ("/docs/swagger-initializer.js", "no-cache"),
        ("/openapi.json", "no-cache"),
    ] {
        let answer = fleet[0].get(path).send().await.expect(200);
        assert_eq!(answer.header("cache-control"), Some(caching), "{path}");
        let etag = answer.header("etag").expect("an entity tag").to_owned();
        let again = fleet[0].get(path).header("if-none-match", &etag).send().await.expect(304);
        assert!(again.body.is_empty() && again.header("etag") == Some(&etag), "{path}");
        fleet[0].get(path).header("if-none-match", "\"other\"").send().await.expect(200);
    }
    fleet[0].get("/docs/nothing.js").send().await.expect_problem(404, "not_found");
    let fleet = Fleet::builder().env("API_DOCS", "off").start().await;
    for path in ["/docs", "/docs/", "/docs/swagger-ui-bundle.js", "/openapi.json"] {
        fleet[0].get(path).send().await.expect_problem(404, "not_found");
    }
    fleet[0].get("/profile").send().await.expect_problem(401, "session_invalid");
}
