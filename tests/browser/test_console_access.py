"""Who may look and act: by a token from anywhere, without one from this machine only."""

import urllib.error
import urllib.request

import pytest

from conftest import open_shop, visiting

TOKEN = "a-token-of-this-test"  # noqa: S105 - of this test


@pytest.fixture(scope="module")
def guarded():
    with open_shop(FREELOOP_TOKEN=TOKEN) as running:
        yield running


def send(url, *, data=None, **headers):
    request = urllib.request.Request(  # noqa: S310 - our own server
        url, data=data, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - our own server
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_token_opens_it_and_the_session_is_strict(browser, guarded):
    with visiting(browser, guarded) as make:
        page = make()
        page.expected = ("401",)
        page.open("requests")
        assert page.page.url.endswith("/console/login")
        assert page.find_barriers() == []
        page.page.fill("#token", "not the token")
        page.page.press("#token", "Enter")
        page.see("That is not the token.")
        page.page.fill("#token", TOKEN)
        page.page.press("#token", "Enter")
        page.page.wait_for_url("**/now")
        page.wait_updates(1)
        (cookie,) = page.page.context.cookies()
        assert (cookie["sameSite"], cookie["httpOnly"], cookie["path"]) == ("Strict", True, "/console")
        assert TOKEN not in cookie["value"]
        page.page.click("text=Log out")
        page.page.wait_for_url("**/login")
        page.open("now")
        assert page.page.url.endswith("/console/login")
    guarded.logged("console: logged in")
    guarded.logged("console: a wrong token")


def test_programs_bear_the_token(guarded):
    assert send(f"{guarded.console}/now.json")[0] == 401
    assert send(f"{guarded.console}/now.json", Authorization="Bearer wrong")[0] == 401
    assert send(f"{guarded.console}/now.json", Cookie="freeloop_console=99999999999.00")[0] == 401
    status, text = send(f"{guarded.console}/now.json", Authorization=f"Bearer {TOKEN}")
    assert status == 200
    assert '"sentences"' in text


def test_an_action_needs_a_page_of_ours(shop):
    url, data = f"{shop.console}/requests/cancel", b"process=1&number=1"
    assert send(url, data=data)[0] == 403
    assert send(url, data=data, Origin="http://evil.example")[0] == 403
    assert send(url, data=data, Origin="null")[0] == 403
    assert send(url, data=data, Origin=shop.url) == (200, '{"cancelled":false}')


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"X-Forwarded-For": "203.0.113.9"}, {"Forwarded": "for=203.0.113.9"}],
)
def test_without_a_token_it_opens_on_this_machine_only(shop, headers):
    assert send(f"{shop.console}/now.json")[0] == 200
    status, text = send(f"{shop.console}/now.json", **headers)
    assert status == 403
    assert "FREELOOP_TOKEN" in text


def test_no_page_runs_a_script_that_is_not_ours(shop):
    with urllib.request.urlopen(f"{shop.console}/now", timeout=20) as answer:  # noqa: S310 - our own server
        policy, page = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "'unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "<script>" not in page
    assert " style=" not in page
    assert " onclick=" not in page


def test_a_route_with_markup_in_its_path_is_text(browser, shop):
    send(f"{shop.url}/%3Cimg%20src=x%20onerror=alert(1)%3E")
    shop.ask("/fail")
    shop.wait()
    with visiting(browser, shop) as make:
        page = make()
        page.open("requests?q=%22%3E%3Cimg%20src%3Dx%3E")
        assert page.page.locator("main img").count() == 0
        assert page.page.input_value("input[name=q]") == '"><img src=x>'
