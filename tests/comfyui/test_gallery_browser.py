"""The gallery in Chromium, alone on a page, over a server that can be late, away or unwilling."""

import asyncio

import pytest
from browser import Browser, find_chromium
from gallery_fake import CONTROL, HOSTILE, SHIFT, Fake, Seen

pytestmark = pytest.mark.skipif(not find_chromium(), reason="no chromium: the gallery was not looked at")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One browser for all looks; each has a server, and so a memory, of its own."""
    with asyncio.Runner() as runner:
        page = Browser(tmp_path_factory.mktemp("gallery") / "profile", (940, 700))
        page.profile.mkdir()
        runner.run(page.__aenter__())
        yield runner, page
        runner.run(page.__aexit__())


def with_gallery(chromium, look, count: int = 1000) -> None:
    runner, page = chromium

    async def go():
        page.console.clear()
        async with Fake(count) as fake:
            seen = Seen(page, fake)
            await seen.open()
            await look(seen, fake)
            await page.open("about:blank")
        return [c for c in page.console if c[0] == "exception"]

    assert runner.run(go()) == []


def test_a_long_dataset_has_few_elements_wherever_one_is(chromium):
    async def look(seen: Seen, fake: Fake):
        await seen.key("End")
        await seen.until("document.querySelector('.cell.focus')?.getAttribute('aria-label')?.includes('IMG_49999')")
        assert await seen.page.evaluate("document.querySelectorAll('.cell').length") < 100
        assert (
            await seen.page.evaluate("document.querySelector('.cell.focus').getAttribute('aria-posinset')") == "50000"
        )
        pages = [asked for asked in fake.asked if "/rows" in asked]
        assert len(pages) <= 4  # nothing between the ends was read
        await seen.until("document.querySelectorAll('.cell img:not([hidden])').length > 10")

    with_gallery(chromium, look, count=50_000)


def test_hostile_text_stays_text(chromium):
    async def look(seen: Seen, fake: Fake):
        await seen.key(*["ArrowRight"] * 5, " ")
        await seen.until("document.querySelector('.detail .text')")
        assert await seen.text(".detail .text") == HOSTILE
        await seen.filter("shapness > 1")
        await seen.until("document.querySelector('.problem').textContent")
        assert "<b>sharpness</b>" in await seen.text(".problem")
        await seen.page.evaluate("window.gallery.toTab('groups')")
        await seen.until("document.querySelectorAll('.copy').length > 5")
        assert (
            await seen.page.evaluate(
                "document.querySelectorAll('img[src=x], .flux-atelier-gallery script, .problem b').length"
            )
            == 0
        )
        assert await seen.page.evaluate("window.hacked === undefined")

    with_gallery(chromium, look)


def test_keys_decide_and_go_no_further(chromium):
    async def look(seen: Seen, fake: Fake):
        await seen.key("k", "r", "ArrowRight", "k", "5")
        await seen.until("document.querySelector('.foot .says').textContent.startsWith('Gave')")
        await seen.settled()
        assert await seen.verdicts(4) == ["keep", "reject", "", "keep"]
        await seen.until("document.querySelector('.counts').textContent === 'kept 2rejected 1undecided 997'")
        assert (fake.decisions, fake.stars) == ({0: "keep", 1: "reject", 3: "keep"}, {4: 5})
        await seen.key("u", "u")
        await seen.until("document.querySelector('.foot .says').textContent.includes('keep 1 pictures')")
        await seen.until("document.querySelectorAll('.cell[data-decision=keep]').length === 1")
        assert (fake.decisions, fake.stars) == ({0: "keep", 1: "reject"}, {})
        await seen.key("Home", "Delete")
        await seen.until("document.querySelectorAll('.cell[data-decision=keep]').length === 0")
        await seen.filter("undecided")  # letters in a field are letters
        await seen.until("document.querySelector('.foot .shown').textContent === '999 pictures'")
        assert fake.decisions == {0: None, 1: "reject"}
        await seen.page.evaluate(
            "document.querySelector('.cells').dispatchEvent(new ClipboardEvent('paste', {bubbles: true}))"
        )
        assert await seen.page.evaluate("window.leaked") == []
        await seen.page.evaluate("document.querySelector('#outside').focus()")
        await seen.key("k")
        assert await seen.page.evaluate("window.leaked") == ["keydown k", "keyup k"]
        assert fake.decisions == {0: None, 1: "reject"}

    with_gallery(chromium, look)


def test_a_refused_or_unheard_decision_is_taken_back_and_told(chromium):
    async def look(seen: Seen, fake: Fake):
        for trouble, words in (("refuse", "The store is read-only."), ("away", "The server does not answer.")):
            fake.trouble = trouble
            await seen.key("Home", "k")
            await seen.until(f"document.querySelector('.foot .trouble').textContent.startsWith('{words}')")
            assert await seen.verdicts(1) == [""]
            assert (await seen.text(".counts")).startswith("kept 0")
            await seen.picture(trouble)
        fake.trouble = ""
        await seen.key("Home", "k")
        await seen.until("document.querySelector('.foot .trouble').textContent === ''")
        await seen.until("document.querySelector('.cell').dataset.decision === 'keep'")
        assert fake.decisions == {0: "keep"}

    with_gallery(chromium, look)


def test_a_server_that_comes_back_is_found_again(chromium):
    async def look(seen: Seen, fake: Fake):
        fake.trouble = "away"
        await seen.key("End")
        await seen.until("document.querySelector('.foot .trouble').textContent.includes('does not answer')")
        fake.trouble = ""
        await seen.page.evaluate("document.querySelector('.foot button').click()")
        await seen.until("document.querySelector('.cell.focus')?.getAttribute('aria-label')?.includes('IMG_00999')")
        assert await seen.text(".foot .trouble") == ""

    with_gallery(chromium, look)


def test_answers_out_of_order_do_not_mix(chromium):
    async def look(seen: Seen, fake: Fake):
        fake.late = [1.5, 0, 0]
        await seen.filter("last 7")
        await seen.filter("last 3")
        await seen.until("document.querySelector('.foot .shown').textContent === '3 pictures'")
        await asyncio.sleep(1.8)
        assert await seen.text(".foot .shown") == "3 pictures"
        assert await seen.page.evaluate("document.querySelectorAll('.cell').length") == 3
        assert "IMG_00997" in await seen.page.evaluate("document.querySelector('.cell').getAttribute('aria-label')")

    with_gallery(chromium, look)


def test_all_that_the_filter_shows_is_one_request(chromium):
    async def look(seen: Seen, fake: Fake):
        await seen.filter("last 900")
        await seen.until("document.querySelector('.foot .shown').textContent === '900 pictures'")
        await seen.key("a", modifiers=CONTROL)
        assert await seen.text(".foot .shown") == "900 pictures, 900 chosen"
        await seen.key("r")
        await seen.until("document.querySelector('.counts').textContent.includes('rejected 900')")
        assert fake.decisions == dict.fromkeys(range(100, 1000), "reject")
        assert len([asked for asked in fake.asked if asked.endswith("/decide")]) == 1
        await seen.key("Escape", "Home")
        await seen.key("End", modifiers=SHIFT)  # a stretch over rows that were never read
        await seen.until("document.querySelector('.foot .shown').textContent === '900 pictures, 900 chosen'")
        await seen.key("k")
        await seen.until("document.querySelector('.counts').textContent.includes('kept 900')")
        assert fake.decisions == dict.fromkeys(range(100, 1000), "keep")

    with_gallery(chromium, look)


def test_rows_that_leave_the_filter_take_nobody_with_them(chromium):
    async def look(seen: Seen, fake: Fake):
        await seen.filter("undecided")
        await seen.until("document.querySelector('.foot .shown').textContent === '1,000 pictures'")
        await seen.page.evaluate("window.gallery.choose({...window.gallery.selection, focus: 150, anchor: 0})")
        await seen.key("ArrowLeft", modifiers=SHIFT)
        await seen.until("document.querySelector('.foot .shown').textContent === '1,000 pictures, 150 chosen'")
        await seen.key("k", "Escape", "ArrowRight")
        for n in range(600):  # beyond the first page, whose end moves with every decision
            await seen.key("k")
            if n % 10 == 9 and len(fake.decisions) > 230:
                break
        await seen.settled()
        kept = sorted(n for n, decision in fake.decisions.items() if decision == "keep")
        assert len(kept) > 230
        assert kept == list(range(len(kept)))  # none was jumped over

    with_gallery(chromium, look)


def test_captions_are_written_locked_and_never_lost(chromium):
    async def look(seen: Seen, fake: Fake):
        editor = "document.querySelector('.editor textarea')"
        await seen.key("e")
        await seen.until(editor)
        await seen.page.evaluate(f"{editor}.select()")
        await seen.page.send("Input.insertText", text="a cat, k r u")
        fake.trouble = "refuse"
        await seen.key("Enter", modifiers=CONTROL)
        await seen.until("document.querySelector('.foot .trouble').textContent.includes('read-only')")
        assert await seen.page.evaluate(f"{editor}.value") == "a cat, k r u"
        fake.trouble = ""
        await seen.key("Enter", modifiers=CONTROL)
        await seen.until("document.querySelector('.detail').hidden")
        assert fake.texts == {0: ["a cat, k r u"]}
        assert await seen.text(".cell .lock") == "by hand"
        await seen.key(" ", "e")
        await seen.until(editor)
        await seen.page.send("Input.insertText", text="never mind")
        await seen.key("Escape")
        await seen.until("document.querySelector('.detail .writer .lock')?.textContent === 'locked'")
        assert await seen.text(".detail .text") == "a cat, k r u"
        assert (fake.texts, fake.decisions) == ({0: ["a cat, k r u"]}, {})

    with_gallery(chromium, look)


def test_the_detail_shows_crop_faces_and_likes(chromium):
    async def look(seen: Seen, fake: Fake):
        await seen.key(" ")
        await seen.until("document.querySelectorAll('.strip button').length === 8")
        shapes = "[...document.querySelectorAll('.stage rect')].map(r => r.getAttribute('class') + ' ' + r.getAttribute('x') + ' ' + r.getAttribute('width'))"
        assert await seen.page.evaluate(shapes) == ["crop 256 1024", "box 620 300"]
        await seen.page.evaluate("document.querySelectorAll('.strip button')[2].click()")
        await seen.until("document.querySelector('.title').textContent.includes('IMG_00003')")
        await seen.focus()
        await seen.key("k")  # decides the one that is shown, and goes on
        await seen.until("document.querySelector('.title').textContent.includes('IMG_00004')")
        await seen.settled()
        assert fake.decisions == {3: "keep"}
        await seen.key("Escape")
        assert await seen.page.evaluate("document.querySelector('.detail').hidden")

    with_gallery(chromium, look)


def test_one_of_a_group_is_kept_with_one_click(chromium):
    async def look(seen: Seen, fake: Fake):
        fake.pending = 1
        await seen.page.evaluate("window.gallery.toTab('groups')")
        await seen.until("document.querySelector('.pager').textContent.includes('500 of 1,000')")
        await seen.until("document.querySelectorAll('.group').length === 20")
        await seen.page.evaluate("document.querySelectorAll('.group')[1].querySelectorAll('button')[1].click()")
        await seen.settled()
        assert fake.decisions == {4: "keep", 3: "reject", 5: "reject"}
        shown = "[...document.querySelectorAll('.group')[1].querySelectorAll('.verdict')].map(v => v.textContent)"
        assert await seen.page.evaluate(shown) == ["rejected", "kept", "rejected"]
        await seen.page.evaluate("document.querySelectorAll('.pager button')[1].click()")
        await seen.until("document.querySelector('.pager').textContent.includes('21 to 40 of 45')")

    with_gallery(chromium, look)


def test_a_reload_finds_everything_where_it_was(chromium):
    async def look(seen: Seen, fake: Fake):
        await seen.filter("last 600")
        await seen.until("document.querySelector('.foot .shown').textContent === '600 pictures'")
        await seen.key(*["PageDown"] * 30)
        await seen.key("ArrowRight", modifiers=SHIFT)
        await seen.until("document.querySelector('.foot .shown').textContent === '600 pictures, 2 chosen'")
        state = "JSON.stringify([window.gallery.selection, window.gallery.cells.element.scrollTop, document.querySelector('.filter').value])"
        before = await seen.page.evaluate(state)
        await seen.page.send("Page.reload")
        await asyncio.sleep(0.3)
        await seen.until("document.querySelector('.cell.focus[aria-label*=\"IMG_\"]')")
        assert await seen.page.evaluate(state) == before

    with_gallery(chromium, look)
