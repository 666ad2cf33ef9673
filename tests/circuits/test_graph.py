"""Circuits as graphs: order of nodes, exact exchange with artefacts, export."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_results import MONOLITHIC, circuit, empty_circuit

from circuits.graph import Node, NodeIndex, SparseFeatureCircuit
from refusal.errors import ArtefactError, InputError
from refusal.schemas import CircuitEdge, CircuitFile, CircuitNode, NodeRef
from refusal.sites import Site, SiteKind

FIRST, SECOND = Site.parse("residuals_0"), Site.parse("residuals_1")
sites = st.builds(Site, st.sampled_from(SiteKind), st.integers(0, 12))
nodes = st.builds(Node, sites, st.none() | st.integers(0, 50))


def node(site: str, latent: int | None, attribution: float) -> CircuitNode:
    return CircuitNode(
        site=site,
        latent=latent,
        attribution=attribution,
        interval=(attribution - 0.1, None),
        minimality=0.2,
        minimality_ci=(0.1, 0.3),
        stability=0.5,
        frequency_refused=0.9,
        frequency_complied=0.1,
        top_prompts=("toxic-1", "toxic-2"),
    )


def edge(source: tuple[str, int | None], target: tuple[str, int | None], weight: float) -> CircuitEdge:
    ends = [NodeRef(site=site, latent=latent) for site, latent in (source, target)]
    return CircuitEdge(source=ends[0], target=ends[1], weight=weight)


def small(edges: tuple[CircuitEdge, ...] | None = None, extra: tuple[CircuitNode, ...] = ()) -> CircuitFile:
    """Two sites: at the first latents 7 and 3 and the error node, at the second latent 5."""
    found = (
        node("residuals_1", 5, -3.0),
        node("residuals_0", 7, 0.5),
        node("residuals_0", None, 0.25),
        node("residuals_0", 3, 2.0),
        *extra,
    )
    if edges is None:
        edges = (
            edge(("residuals_0", 3), ("residuals_1", 5), 0.1),
            edge(("residuals_0", None), ("residuals_1", 5), -0.9),
            edge(("residuals_0", 7), ("residuals_1", 5), 0.4),
        )
    return empty_circuit("m", "c", "n").model_copy(update={"nodes": found, "edges": edges})


@given(st.sets(nodes, max_size=30))
def test_node_index_maps_offsets_to_nodes_and_back(chosen: set[Node]) -> None:
    index = NodeIndex.of_nodes(chosen)
    assert [index.offset(index.node(offset)) for offset in range(len(index))] == list(range(len(index)))
    assert chosen <= set(index)


@given(st.sets(nodes, max_size=30))
def test_node_index_is_in_order_of_depth_with_error_nodes_last(chosen: set[Node]) -> None:
    index = NodeIndex.of_nodes(chosen)
    assert list(index) == sorted(index)
    for site in index.sites:
        at_site = list(index)[index.span(site)]
        assert [each.site for each in at_site] == [site] * len(at_site)
        assert [each.is_error for each in at_site] == [False] * (len(at_site) - 1) + [True]


def test_node_index_of_widths_holds_every_latent_and_the_error_node() -> None:
    index = NodeIndex.of_widths({SECOND: 2, FIRST: 3})
    assert [str(each) for each in index] == [
        "residuals_0 #0",
        "residuals_0 #1",
        "residuals_0 #2",
        "residuals_0 error",
        "residuals_1 #0",
        "residuals_1 #1",
        "residuals_1 error",
    ]
    assert index.span(SECOND) == slice(4, 7)


def test_node_index_refuses_offsets_and_nodes_that_it_does_not_have() -> None:
    index = NodeIndex.of_widths({FIRST: 1})
    with pytest.raises(IndexError, match="offset -1 is outside of an index of 2 nodes"):
        index.node(-1)
    with pytest.raises(KeyError):
        index.offset(Node(SECOND, 0))
    assert Node(SECOND, 0) not in index


def test_round_trip_through_a_graph_is_exact() -> None:
    for file in (small(), circuit(MONOLITHIC, "hate"), empty_circuit("m", "c", "why")):
        assert SparseFeatureCircuit.from_file(file).to_file() == file


def test_round_trip_through_json_is_exact(tmp_path) -> None:
    file = circuit(MONOLITHIC, "self-harm")
    SparseFeatureCircuit.from_file(file).to_file().save(tmp_path / "circuit.json")
    assert CircuitFile.load(tmp_path / "circuit.json") == file


def test_nodes_and_edges_come_largest_first() -> None:
    found = SparseFeatureCircuit.from_file(small())
    assert [str(each) for each in found.nodes_at(FIRST)] == ["residuals_0 #3", "residuals_0 #7", "residuals_0 error"]
    assert [str(each) for each in found.top(2)] == ["residuals_1 #5", "residuals_0 #3"]
    assert [weight for _, _, weight in found.strongest_edges()] == [-0.9, 0.4, 0.1]
    assert [weight for _, _, weight in found.strongest_edges([Node(FIRST, 3), Node(SECOND, 5)])] == [0.1]
    assert found.sites == (FIRST, SECOND)


def test_attributions_follow_the_index_with_zero_for_a_missing_error_node() -> None:
    found = SparseFeatureCircuit.from_file(small())
    np.testing.assert_array_equal(found.attributions(), [2.0, 0.5, 0.25, -3.0, 0.0])


def test_subcircuit_keeps_the_edges_between_its_nodes() -> None:
    found = SparseFeatureCircuit.from_file(small()).subcircuit([Node(FIRST, 7), Node(SECOND, 5)])
    assert len(found) == 2
    assert [each.weight for each in found.to_file().edges] == [0.4]


def test_subcircuit_of_unknown_nodes_names_them_and_what_there_is() -> None:
    with pytest.raises(InputError, match=r"no node residuals_0 #4; it has 4 nodes, the largest residuals_1 #5"):
        SparseFeatureCircuit.from_file(small()).subcircuit([Node(FIRST, 4)])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (small(extra=(node("residuals_0", 3, 1.0),)), "node residuals_0 #3 is there twice"),
        (small((edge(("residuals_0", 9), ("residuals_1", 5), 1.0),)), "joins a node that the circuit does not have"),
        (small((edge(("residuals_1", 5), ("residuals_0", 3), 1.0),)), "does not lead to a deeper site"),
        (small((edge(("residuals_0", 3), ("residuals_1", 5), 1.0),) * 2), "is there twice"),
    ],
)
def test_damaged_circuits_are_refused_with_the_command_that_mends_them(file: CircuitFile, message: str) -> None:
    with pytest.raises(ArtefactError, match=message) as caught:
        SparseFeatureCircuit.from_file(file)
    assert "run_circuit_analysis.py" in str(caught.value)


def test_node_link_form_holds_every_node_and_edge() -> None:
    content = json.loads(json.dumps(SparseFeatureCircuit.from_file(small()).to_node_link()))
    graph = nx.node_link_graph(content, edges="edges")
    assert set(graph) == {"residuals_0 #3", "residuals_0 #7", "residuals_0 error", "residuals_1 #5"}
    assert graph.edges["residuals_0 error", "residuals_1 #5"]["weight"] == -0.9
    assert graph.nodes["residuals_1 #5"]["attribution"] == -3.0
    assert "attribution_high" not in graph.nodes["residuals_1 #5"]


def test_graphml_can_be_read_back_whatever_the_names_hold() -> None:
    file = small().model_copy(update={"category": "<&\x00\x1b\ud800\uffff>", "model": "a\u2028b"})
    text = SparseFeatureCircuit.from_file(file).to_graphml()
    ElementTree.fromstring(text)
    graph = nx.parse_graphml(text)
    assert graph.graph["category"] == "<&>"
    assert graph.edges["residuals_0 #7", "residuals_1 #5"]["weight"] == 0.4
    assert graph.nodes["residuals_0 error"]["kind"] == "error"


def test_the_empty_circuit_exports_as_an_empty_graph() -> None:
    found = SparseFeatureCircuit.from_file(empty_circuit("m", "c", "why"))
    assert found.to_node_link()["nodes"] == []
    assert len(nx.parse_graphml(found.to_graphml())) == 0
    assert found.attributions().shape == (0,)
