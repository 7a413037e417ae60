"""A Hypothesis strategy for whole imperative programs: a step loop around statements that Python and TensorFlow allow.

A program is source text, so what fails is shrunk to a few lines that can be read and kept as a test. It is a function
``program(see)`` as in `truth`: it owns variables ``u`` and ``v`` (3 by 3), a batch ``x`` whose number of rows may
change from step to step, an object ``box`` with Python state, a list ``kept`` of tensors of earlier steps, and a random
generator ``rng`` of NumPy's, and it returns what it owns. Its loop ends with a write, so that it is a step. It may have
a ``dense`` layer, a network ``net``, an ``optimizer`` and a ``metric`` of Keras's as well, which it uses and changes.

Tensors are of three *shapes*: ``rows`` (batch by 3), ``square`` (3 by 3) and ``scalar``. Every value is bounded (by
``tanh``, or by a mean), so no program ends in nothing but infinities.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

__all__ = ["STEPS", "programs"]

STEPS = 40

_HEAD = """\
def program(see):
    rng = np.random.default_rng(7)
    u = tf.Variable(rng.normal(size=(3, 3)).astype("float32"))
    v = tf.Variable(rng.normal(size=(3, 3)).astype("float32"))
    box = types.SimpleNamespace(scale=0.5, count=0, last=None)
    kept = [tf.eye(3)]
    options = tf.data.Options()
    options.autotune.enabled = False  # else to drop an iterator takes up to a minute, in eager as well
    few = tf.data.Dataset.from_tensor_slices([0.5, -0.25, 0.125]).with_options(options)
    endless = iter(tf.data.Dataset.range(10**9).with_options(options))

    def chain(a, depth):
        return a if depth == 0 else tf.tanh(chain(a, depth - 1) @ u)

    @tf.function(autograph=False)
    def compiled(a):
        return tf.tanh(a @ v) * 0.5

    @tf.custom_gradient
    def damped(a):
        return tf.tanh(a), lambda upstream: upstream * box.scale * (1.0 - a * a)

    def scaled(tensors):
        for tensor in tensors:
            yield tensor * box.scale

{layers}
    for step in range({steps}):
        x = tf.constant(rng.normal(size=({batch}, 3)).astype("float32"))
"""
_LAYERS = """
    keras.utils.set_random_seed(4)
    dense = keras.layers.Dense(3, activation="tanh")
    hidden = [keras.layers.Dense(4, activation="relu"), keras.layers.Dropout(0.3, seed=2), keras.layers.Dense(3)]
    net = keras.Sequential([keras.layers.Input((3,)), *hidden])
    dense(tf.zeros([1, 3]))
    optimizer, metric = keras.optimizers.Adam(0.01), keras.metrics.MeanSquaredError()
    optimizer.build(dense.trainable_variables + net.trainable_variables)
    activations = [keras.activations.tanh, keras.activations.sigmoid]
    rates = [0.3, 0.6]
    layers = [*dense.variables, *net.variables, *optimizer.variables, *metric.variables]
"""
_TAIL = """\
        u.assign_sub(0.01 * tf.tanh(u @ v))
    return [u, v, box.scale, box.count, kept, next(endless), {owned}]
"""
_BATCHES = ("4", "4", "4", "3 + step % 2", "int(rng.choice([2, 3, 4]))", "4 if step < 25 else 5")
_SHAPES = ("rows", "square", "scalar")


@dataclass
class _Scope:
    """The names that a statement may use, by shape; a body's own names end with it."""

    names: dict[str, list[str]] = field(default_factory=lambda: {shape: [] for shape in _SHAPES})
    open_tapes: tuple[str, ...] = ()
    loops: int = 0

    def inner(self, *, tape: str = "", loop: bool = False) -> _Scope:
        """The scope of a body within."""
        names = {shape: list(known) for shape, known in self.names.items()}
        tapes = (*self.open_tapes, tape) if tape else self.open_tapes
        return _Scope(names, tapes, self.loops + loop)


class _Writer:
    """Draws one program, line by line."""

    def __init__(self, draw: st.DrawFn, layers: bool) -> None:
        self._draw = draw
        self._layers = layers
        self._numbers = 0
        self._budget = draw(st.integers(3, draw(st.sampled_from([8, 8, 12, 22]))))  # many small ones
        self.lines: list[str] = []

    def _one_of(self, *choices: str) -> str:
        return self._draw(st.sampled_from(choices))

    def _fresh(self) -> str:
        self._numbers += 1
        return f"t{self._numbers}"

    # -- expressions -----------------------------------------------------------------------------------------
    def tensor(self, scope: _Scope, shape: str) -> str:
        """Something of a shape that exists already."""
        own = {
            "rows": ["x"],
            "square": ["u", "v", "kept[-1]", "kept[0]"],
            "scalar": ["box.scale", "step * 0.1"],
        }
        return self._one_of(*scope.names[shape], *own[shape])

    def operation(self, scope: _Scope, shape: str) -> str:
        """One op, or a few, that makes a tensor of a shape."""
        one = self.tensor(scope, shape)
        if shape == "scalar":
            many = self.tensor(scope, self._one_of("rows", "square"))
            return self._one_of(
                f"tf.reduce_mean({many})",
                f"tf.reduce_mean(tf.square({many}))",
                f"tf.tanh({one} * 1.0)",
                f"tf.reduce_max({many}) * {self.tensor(scope, 'scalar')} * 0.1",
                f"tf.tanh({many})[0, 1]",
                f"tf.reduce_sum(tf.boolean_mask({many}, {many}[:, 0] > 0.0)) * 0.1",
                f"tf.norm({many}[: 1 + step % 2])",
                f"tf.constant(float({many}[0, 0])) * 0.5",
                f"tf.cast(tf.argmax(tf.reshape({many}, [-1])), tf.float32) * 0.01",
                f"tf.cast(next(endless) % 5, tf.float32) * {one}",
            )
        other, factor = self.tensor(scope, shape), self.tensor(scope, "scalar")
        square = self.tensor(scope, "square")
        size = "tf.shape(x)" if shape == "rows" else "[3, 3]"
        if self._layers and self._draw(st.booleans()):
            return self._one_of(
                f"dense({one})",
                f"tf.tanh(net({one}))",
                f"tf.tanh(net({one}, training=True))",
                f"tf.tanh(net({one}, training={self.condition(scope)}))",
                f"dense(net({one}) + {other}) * metric.result()",
                f"hidden[1]({one}, training=True) * 0.5",
            )
        return self._one_of(
            f"tf.tanh({one} @ {square})",
            f"tf.tanh({one} + {other})",
            f"tf.tanh({one} * {factor})",
            f"tf.nn.relu({one} - {other}) * 0.5",
            f"tf.nn.softmax({one})",
            f"tf.tanh(tf.random.normal({size}) + {one})",
            f"tf.random.uniform({size}, seed=3) * tf.tanh({one})",
            f"tf.where({one} > {other}, {one}, 0.1 * {other})",
            f"tf.cast(tf.tanh(tf.cast({one}, tf.float64)), tf.float32)",
            f"tf.constant(np.tanh({one}.numpy()))",
            f"tf.concat([{one}[:1], {other}[1:]], axis=0)",
            f"tf.gather({one}, tf.constant(rng.permutation({one}.shape[0])))",
            f"tf.stop_gradient({one}) * 0.5 + 0.1 * {other}",
            f"tf.nn.dropout({one}, 0.5) * 0.5",
            f"tf.add_n([{one}, {other}, {one}]) / 3.0",
            f"chain({one}, {self._one_of('1', '2', 'step % 3')})",
            f"tf.gather({one}, [0, 2, 0])" if shape == "square" else f"-{one} * 0.5",
            "tf.tanh(tf.add_n(list(scaled(kept))))" if shape == "square" else f"tf.ones_like({one}) * 0.1",
            f"tf.random.shuffle({one})",
            f"tf.cast(tf.cast({one} * 10.0, tf.int32) // 3, tf.float32) * 0.1",
            f"tf.cond(tf.reduce_sum({one}) > 0.0, lambda: {one} * 0.5, lambda: tf.tanh({other}))",
            f"tf.map_fn(tf.tanh, {one})",
            f"tf.clip_by_norm({one}, 1.0)",
            f"compiled({one})",
            f"damped({one})",
            f"tf.stack([tf.tanh(row) for row in {one}])",
            f"tf.math.cumsum(tf.tanh({one}), axis={self._one_of('0', '1')}) * 0.3",
        )

    def condition(self, scope: _Scope) -> str:
        """What a branch asks."""
        return self._one_of(
            f"step % {self._draw(st.integers(2, 7))} == 1",
            "rng.random() < 0.5",
            "rng.random() < 0.1",
            f"float(tf.reduce_sum({self.tensor(scope, 'rows')})) > 0",
            f"tf.reduce_mean({self.tensor(scope, 'square')}) > 0.0",
            "box.count % 3 == 0",
            "len(kept) > 2",
            "step == 30",
            "box.last is not None",
            f"{self.tensor(scope, 'rows')}.shape[0] == 4",
        )

    # -- statements ------------------------------------------------------------------------------------------
    def body(self, scope: _Scope, indent: int, most: int = 5) -> None:
        """Some statements."""
        for _ in range(self._draw(st.integers(1, most))):
            if self._budget <= 0:
                break
            self._budget -= 1
            self.statement(scope, indent)
        if not self.lines[-1].startswith("    " * indent):
            self.line(indent, "pass")

    def line(self, indent: int, text: str) -> None:
        """A line of the program."""
        self.lines.append("    " * indent + text)

    def statement(self, scope: _Scope, indent: int) -> None:
        """One statement, with its bodies."""
        if self._draw(st.integers(0, 19)) == 0 and scope.open_tapes and indent < 5:
            return self._stopped(scope, indent)
        kinds = ["let", "let", "let", "again", "see", "python", "write", "keep"]
        if indent < 5:
            kinds += ["branch", "loop", "raise", "refuse"]
            if len(scope.open_tapes) < 2:
                kinds += ["tape", "tape", "adapt"]
        if scope.loops:
            kinds += ["jump"]
        return getattr(self, "_" + self._one_of(*kinds))(scope, indent)

    def _let(self, scope: _Scope, indent: int) -> None:
        shape, name = self._one_of(*_SHAPES), self._fresh()
        self.line(indent, f"{name} = {self.operation(scope, shape)}")
        scope.names[shape].append(name)

    def _again(self, scope: _Scope, indent: int) -> None:
        """Bind a name anew, perhaps one from outside the branch."""
        shape = self._one_of(*_SHAPES)
        name = self._one_of(*scope.names[shape]) if scope.names[shape] else "unused"
        self.line(indent, f"{name} = {self.operation(scope, shape)}")

    def _see(self, scope: _Scope, indent: int) -> None:
        value = self.tensor(scope, self._one_of(*_SHAPES))
        text = self._one_of("{}", "{}", "str({})", "[{}, len(kept), box.scale]", "np.asarray({}).tolist()")
        self.line(indent, f"see({text.format(value)})")

    def _change(self, scope: _Scope, indent: int) -> None:
        """Something that a call of a layer or the optimizer depends on."""
        text = self._one_of(
            "dense.trainable = not dense.trainable",
            "dense.activation = activations[step % 2]",
            "vars(dense)['activation'] = activations[box.count % 2]",
            "hidden[1].rate = rates[box.count % 2]",
            "optimizer.learning_rate = 0.01 * (1 + step % 3)",
            "optimizer.beta_1 = 0.9 if box.count % 2 else 0.8",
            "dense.set_weights([weight * 0.9 for weight in dense.get_weights()])",
            "hidden[0].use_bias = box.count % 3 != 1",
            "hidden[2].trainable = step % 5 != 3",
            "metric.reset_state()",
            "keras.config.set_epsilon(1e-7 if step % 2 else 1e-6)",
        )
        if self._draw(st.booleans()):
            self.line(indent, f"if {self.condition(scope)}:")
            indent += 1
        self.line(indent, text)

    def _python(self, scope: _Scope, indent: int) -> None:
        if self._layers and self._draw(st.booleans()):
            self._change(scope, indent)
            return
        text = self._one_of(
            "box.scale *= 0.9",
            "box.scale = 1.0 - box.scale",
            "box.count += 1",
            f"box.scale = float(tf.reduce_mean({self.tensor(scope, 'square')}))",
            f"box.last = {self.tensor(scope, 'square')}",
            "box.last = None",
            "kept = kept[-2:]",
            "kept.reverse()",
        )
        self.line(indent, text)

    def _write(self, scope: _Scope, indent: int) -> None:
        if self._layers and self._draw(st.booleans()):
            one, other = self.tensor(scope, "square"), self.tensor(scope, "square")
            self.line(indent, f"metric.update_state({one}, {other})")
            return
        variable = self._one_of("u", "v")
        where = self._draw(st.integers(0, 6))
        if where == 0:
            self.line(indent, f"v[step % 3].assign(tf.tanh({self.tensor(scope, 'square')})[0])")
            return
        if where == 1:
            rows = self._one_of("[step % 3, 0]", "tf.argmax(u, axis=1)[:2]", "rng.integers(0, 3, 2)")
            how = self._one_of("scatter_update", "scatter_add", "scatter_sub", "scatter_max")
            slices = f"tf.IndexedSlices(0.1 * {self.tensor(scope, 'square')}[:2], {rows})"
            self.line(indent, f"{variable}.{how}({slices})")
            return
        how = self._one_of("assign({})", "assign_add(0.1 * {})", "assign_sub(0.1 * {})")
        self.line(indent, f"{variable}.{how.format(self.operation(scope, 'square'))}")

    def _keep(self, scope: _Scope, indent: int) -> None:
        self.line(indent, f"kept.append({self.operation(scope, 'square')})")
        self.line(indent, "del kept[:-3]")

    def _branch(self, scope: _Scope, indent: int) -> None:
        self.line(indent, f"if {self.condition(scope)}:")
        self.body(scope.inner(), indent + 1, 3)
        if self._draw(st.booleans()):
            self.line(indent, "else:")
            self.body(scope.inner(), indent + 1, 3)

    def _turns(self, scope: _Scope, indent: int) -> None:
        """The head of a loop."""
        times = self._one_of("2", "3", "step % 3", "int(rng.integers(1, 4))", "box.count % 4", "len(kept)")
        self.line(indent, f"for _ in range({times}):")

    def _loop(self, scope: _Scope, indent: int) -> None:
        inner = scope.inner(loop=True)
        if self._draw(st.integers(0, 3)) == 0:
            element = self._fresh()
            self.line(indent, f"for {element} in {self._one_of('few', 'few', 'few.take(step % 3)')}:")
            inner.names["scalar"].append(element)
        else:
            self._turns(scope, indent)
        self.body(inner, indent + 1, 3)

    def _jump(self, scope: _Scope, indent: int) -> None:
        self.line(indent, f"if {self.condition(scope)}:")
        self.line(indent + 1, self._one_of("break", "continue"))

    def _raise(self, scope: _Scope, indent: int) -> None:
        """An exception of the program's own."""
        self.line(indent, "try:")
        inner = scope.inner()
        self.body(inner, indent + 1, 2)
        self.line(indent + 1, f"if {self.condition(inner)}:")
        self.line(indent + 2, "raise KeyError(step)")
        self.body(inner, indent + 1, 2)
        self.line(indent, self._one_of("except KeyError:", "except KeyError as error:"))
        self.body(scope.inner(), indent + 1, 2)
        if self._draw(st.booleans()):
            self.line(indent, "finally:")
            self.body(scope.inner(), indent + 1, 2)

    def _refuse(self, scope: _Scope, indent: int) -> None:
        """An op whose kernel refuses a value in some steps; nothing follows it in the body (docs/limits.md)."""
        name = self._fresh()
        index = self._one_of("step % 4", "int(rng.integers(0, 4))")
        self.line(indent, "try:")
        written = self._draw(st.integers(0, 3)) == 0
        if written:
            slices = f"tf.IndexedSlices(0.1 * {self.tensor(scope, 'square')}, [0, {index}, 1])"
            self.line(indent + 1, f"{self._one_of('u', 'v')}.scatter_add({slices})")
        else:
            matrix = self.tensor(scope, "square")
            self.line(indent + 1, f"{name} = tf.gather({matrix}, tf.constant([{index}, 0, 1]))")
        self.line(indent, "except tf.errors.InvalidArgumentError:")
        self.line(indent + 1, f"{name} = {self.operation(scope, 'square')}")
        if written:
            self.line(indent, "else:")
            self.line(indent + 1, f"{name} = {self.operation(scope, 'square')}")
        scope.names["square"].append(name)

    def _stopped(self, scope: _Scope, indent: int) -> None:
        self.line(indent, f"with {self._one_of(*scope.open_tapes)}.stop_recording():")
        self.body(scope.inner(), indent + 1, 2)

    def _tape(self, scope: _Scope, indent: int) -> None:
        self._numbers += 1
        tape = f"tape{self._numbers}"
        persistent = self._draw(st.booleans())
        self.line(indent, f"with tf.GradientTape({'persistent=True' if persistent else ''}) as {tape}:")
        inner = scope.inner(tape=tape)
        watched = self._one_of("", "x", *scope.names["rows"], *scope.names["square"])
        if watched:
            self.line(indent + 1, f"{tape}.watch({watched})")
        self.body(inner, indent + 1, 4)
        loss = self._fresh()
        self.line(indent + 1, f"{loss} = {self.operation(inner, 'scalar')} + tf.reduce_mean(u @ v)")
        sources = ["u", "v"] + ([watched] if watched else [])
        asked = [loss] + ([f"tf.tanh({loss})"] if persistent and self._draw(st.booleans()) else [])
        scope.names["scalar"].append(loss)
        for target in asked:
            found = self._fresh()
            if self._layers and target == loss and self._draw(st.booleans()):
                self.line(indent, "wanted = dense.trainable_variables + net.trainable_variables")
                self.line(indent, f"{found}k = {tape}.gradient({loss}, wanted)")
                self.line(indent, f"pairs = [pair for pair in zip({found}k, wanted) if pair[0] is not None]")
                self.line(indent, "if pairs:  # else it raises, and the program ends in its first step")
                self.line(indent + 1, "optimizer.apply_gradients(pairs)")
                if not persistent:
                    continue
            if target != loss:
                self.line(indent, f"with {tape}:")
                self.line(indent + 1, f"{found}y = {target}")
                target = f"{found}y"
            weighted = f", output_gradients=tf.convert_to_tensor({self.tensor(scope, 'scalar')})"
            options = self._one_of("", "", "", weighted, ", unconnected_gradients='zero'")
            self.line(indent, f"{found} = {tape}.gradient({target}, [{', '.join(sources)}]{options})")
            self.line(indent, f"u.assign_sub(0.05 * tf.tanh({found}[0]))")
            if self._draw(st.booleans()):
                self.line(indent, f"see({found}[-1])")
            scope.names["square"].append(f"{found}[0]")

    def _adapt(self, scope: _Scope, indent: int) -> None:
        """An inner loop of gradients, often of another number of turns each time, under a tape that sees it all."""
        self._numbers += 1
        outer, inner_tape = f"tape{self._numbers}", f"inner{self._numbers}"
        adapted, found = self._fresh(), self._fresh()
        self.line(indent, f"with tf.GradientTape() as {outer}:")
        self.line(indent + 1, f"{adapted} = {self._one_of('u', 'v', self.tensor(scope, 'square'))} * 1.0")
        body = scope.inner(tape=outer, loop=True)
        body.names["square"].append(adapted)
        self._turns(body, indent + 1)
        self.line(indent + 2, f"with tf.GradientTape() as {inner_tape}:")
        self.line(indent + 3, f"{inner_tape}.watch({adapted})")
        within = body.inner(tape=inner_tape)
        self.body(within, indent + 3, 2)
        self.line(indent + 3, f"loss = {self.operation(within, 'scalar')} + tf.reduce_mean({adapted} @ v)")
        asked = f"{inner_tape}.gradient(loss, {adapted}, unconnected_gradients='zero')"
        self.line(
            indent + 2, f"{adapted} = {adapted} - {self._one_of('0.1', 'box.scale')} * tf.tanh({asked})"
        )
        self.body(body, indent + 2, 1)
        self.line(indent + 1, f"loss = tf.reduce_mean(tf.tanh(x @ {adapted})) + tf.reduce_mean(u @ v)")
        self.line(indent, f"{found} = {outer}.gradient(loss, [u, v])")
        self.line(indent, f"{self._one_of('u', 'v')}.assign_sub(0.05 * tf.tanh({found}[0]))")
        scope.names["square"] += [adapted, f"{found}[1]"]


@st.composite
def programs(draw: st.DrawFn, layers: bool = False) -> str:
    """The source of a program, with or without layers of Keras's."""
    writer = _Writer(draw, layers)
    head = _HEAD.format(steps=STEPS, batch=writer._one_of(*_BATCHES), layers=_LAYERS if layers else "")
    writer.lines = head.splitlines()
    writer.body(_Scope(), 2, 8)
    return "\n".join(writer.lines) + "\n" + _TAIL.format(owned="layers" if layers else "None")
