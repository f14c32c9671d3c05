"""How sentences are found and ranked."""

from services.simulator.matching import Matcher, sentence_list, sentences, shorten, stem, terms


def test_forms_of_a_word_meet():
    assert stem("stores") == stem("stored") == stem("storing") == stem("store")
    assert stem("policies") == stem("policy")
    assert stem("class") != stem("clas")


def test_stop_words_and_case_do_not_count():
    assert terms("What IS the Lease?") == terms("lease")


def test_sentences_are_exact_parts_without_markdown_signs():
    text = "# Title\n\n- First point. Second point!\n1. Third\n> quoted"
    assert sentences(text) == ["Title", "First point.", "Second point!", "Third", "quoted"]
    assert all(sentence in text for sentence in sentences(text))


def test_the_rarer_word_decides():
    common = [line for number in range(20) for line in sentence_list("document", f"The service number {number} runs.")]
    rare = list(sentence_list("document", "The lease of it lasts long."))
    best = Matcher([*common, *rare]).rank(terms("service lease"), weights={"document": 1.0})[0]
    assert best.sentence is rare[0]


def test_sources_are_weighted():
    said = list(sentence_list("user", "The colour is teal."))
    written = list(sentence_list("document", "The colour is red."))
    matcher = Matcher([*said, *written])
    assert matcher.rank(terms("colour"), weights={"user": 1.0, "document": 0.5})[0].sentence is said[0]
    assert matcher.rank(terms("colour"), weights={"user": 0.5, "document": 1.0})[0].sentence is written[0]


def test_the_heading_speaks_for_its_sentence():
    under = list(sentence_list("document", "It lasts 3 s.", heading="Lease times", title="a.md"))
    other = list(sentence_list("document", "It lasts 9 s.", heading="Weather", title="b.md"))
    ranked = Matcher([*other, *under]).rank(terms("how long a lease lasts"), weights={"document": 1.0})
    assert ranked[0].sentence is under[0]


def test_coverage_is_a_share():
    matcher = Matcher(list(sentence_list("document", "Leases last.")))
    assert matcher.rank(terms("leases"), weights={"document": 1.0})[0].coverage == 1.0
    assert matcher.rank(terms("leases unknown"), weights={"document": 1.0})[0].coverage < 1.0
    assert matcher.rank(terms("nothing"), weights={"document": 1.0}) == []


def test_long_quotes_end_at_a_word():
    cut = shorten("word " * 200, 52)
    assert cut == "word " * 9 + "word …"
