"""A call that names no model: which one answers, and whether its caller may ask it, is decided anew for each call."""


async def test_a_call_without_a_model_is_not_answered_by_what_another_one_left(layers):
    async with layers.as_user("ana"):
        first = await layers.caches.complete(layers.chat(model=""))
        second = await layers.caches.complete(layers.chat(model=""))
        named = await layers.caches.complete(layers.chat())
    assert [completed.outcome.cached for completed in (first, second, named)] == ["", "", ""]
    assert await layers.asked() == 3
