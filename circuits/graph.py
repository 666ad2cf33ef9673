"""A circuit as a graph: nodes are latents and error nodes of sites, edges carry attribution from site to site.

`SparseFeatureCircuit` wraps a networkx `DiGraph` and is exchanged with `CircuitFile` without loss. `NodeIndex` is the
one place that knows in which order nodes stand: sites by depth, at each site its latents, then its error node. This
module knows neither models nor SAEs, and nothing about how circuits are found or drawn.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import total_ordering
from io import BytesIO
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Float

from refusal.errors import ArtefactError, InputError
from refusal.record import MAIN
from refusal.schemas import CircuitEdge, CircuitFile, CircuitNode, NodeRef
from refusal.sites import Site


@total_ordering
@dataclass(frozen=True)
class Node:
    """A node of a circuit, ordered by depth, then latent; the error node of a site is its last."""

    site: Site
    latent: int | None
    """Index of the SAE's latent; None: the error node, what the SAE does not reconstruct."""

    @classmethod
    def of(cls, ref: NodeRef) -> Node:
        """Return the node that an artefact names."""
        return cls(Site.parse(ref.site), ref.latent)

    @property
    def ref(self) -> NodeRef:
        """The node as artefacts name it."""
        return NodeRef(site=self.site.name, latent=self.latent)

    @property
    def is_error(self) -> bool:
        """True for the error node of a site."""
        return self.latent is None

    def __lt__(self, other: Node) -> bool:
        if self.site != other.site:
            return self.site < other.site
        if self.latent is None or other.latent is None:
            return self.latent is not None
        return self.latent < other.latent

    def __str__(self) -> str:
        return f"{self.site} error" if self.latent is None else f"{self.site} #{self.latent}"


class NodeIndex:
    """The order of nodes on a node axis: sites by depth, at each its latents, then its error node.

    >>> site = Site.parse("residuals_0")
    >>> index = NodeIndex({site: [7, 3]})
    >>> [str(node) for node in index], index.offset(Node(site, 7)), len(index)
    (['residuals_0 #3', 'residuals_0 #7', 'residuals_0 error'], 1, 3)
    """

    def __init__(self, latents: Mapping[Site, Collection[int]]) -> None:
        """Make the index of the given latents by site; every site gets its error node besides."""
        self.sites: tuple[Site, ...] = tuple(sorted(latents))
        self._latents: dict[Site, Sequence[int]] = {}
        self._start: dict[Site, int] = {}
        self._offset: dict[Node, int] = {}
        for site in self.sites:
            self._latents[site] = sorted(set(latents[site]))
            self._start[site] = len(self._offset)
            for latent in (*self._latents[site], None):
                self._offset[Node(site, latent)] = len(self._offset)
        self._nodes = tuple(self._offset)

    @classmethod
    def of_nodes(cls, nodes: Collection[Node]) -> NodeIndex:
        """Return the smallest index that holds `nodes`."""
        sites = {node.site for node in nodes}
        return cls({site: [n.latent for n in nodes if n.site == site and n.latent is not None] for site in sites})

    @classmethod
    def of_widths(cls, d_sae: Mapping[Site, int]) -> NodeIndex:
        """Return the index of all latents of SAEs with the given numbers of latents."""
        return cls({site: range(width) for site, width in d_sae.items()})

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def __contains__(self, node: object) -> bool:
        return node in self._offset

    def offset(self, node: Node) -> int:
        """Return where `node` stands.

        Raises:
            KeyError: The node is not in the index.
        """
        return self._offset[node]

    def node(self, offset: int) -> Node:
        """Return the node at `offset`, which counts from 0.

        Raises:
            IndexError: There is no such offset.
        """
        if not 0 <= offset < len(self):
            raise IndexError(f"offset {offset} is outside of an index of {len(self)} nodes")
        return self._nodes[offset]

    def span(self, site: Site) -> slice:
        """Return the offsets of all nodes at a site, its error node last."""
        start = self._start[site]
        return slice(start, start + len(self._latents[site]) + 1)


class SparseFeatureCircuit:
    """A circuit of one category: a `DiGraph` over `Node` with what was measured of each node and edge.

    Node attribute `record` is the `CircuitNode`; edge attribute `weight` is the part of the target's attribution that
    reaches it from the source, in logits.
    """

    def __init__(self, header: CircuitFile, graph: nx.DiGraph) -> None:
        """Wrap a graph; `header` gives everything that is said of the circuit as a whole."""
        self.graph = graph
        self._header = header

    @classmethod
    def from_file(cls, file: CircuitFile) -> SparseFeatureCircuit:
        """Return the circuit that an artefact holds.

        Raises:
            ArtefactError: A node is there twice, or an edge joins unknown nodes or leads back in depth.
        """
        graph = nx.DiGraph()
        for record in file.nodes:
            node = Node.of(record)
            if node in graph:
                raise _damaged(file, f"node {node} is there twice")
            graph.add_node(node, record=record)
        for order, edge in enumerate(file.edges):
            ends = Node.of(edge.source), Node.of(edge.target)
            name = " -> ".join(str(end) for end in ends)
            if not all(end in graph for end in ends):
                raise _damaged(file, f"edge {name} joins a node that the circuit does not have")
            if not ends[0].site < ends[1].site:
                raise _damaged(file, f"edge {name} does not lead to a deeper site")
            if graph.has_edge(*ends):
                raise _damaged(file, f"edge {name} is there twice")
            graph.add_edge(*ends, weight=edge.weight, order=order)
        return cls(file, graph)

    def to_file(self) -> CircuitFile:
        """Return the artefact; `from_file` of it gives an equal circuit, and nodes and edges keep their order."""
        edges = sorted(self.graph.edges(data=True), key=lambda edge: edge[2]["order"])
        return self._header.model_copy(
            update={
                "nodes": tuple(self.record(node) for node in self.graph),
                "edges": tuple(
                    CircuitEdge(source=source.ref, target=target.ref, weight=values["weight"])
                    for source, target, values in edges
                ),
            }
        )

    @property
    def header(self) -> CircuitFile:
        """Model, category, numbers of prompts and curves; its nodes and edges are those the circuit was made from."""
        return self._header

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that have nodes, by depth."""
        return tuple(sorted({node.site for node in self.graph}))

    @property
    def index(self) -> NodeIndex:
        """The order of the circuit's nodes on a node axis."""
        return NodeIndex.of_nodes(list(self.graph))

    def __len__(self) -> int:
        return len(self.graph)

    def __contains__(self, node: object) -> bool:
        return node in self.graph

    def record(self, node: Node) -> CircuitNode:
        """Return what was measured of a node."""
        record: CircuitNode = self.graph.nodes[node]["record"]
        return record

    def nodes_at(self, site: Site) -> list[Node]:
        """Return the nodes at a site, the error node among them, largest absolute attribution first."""
        return self._by_size(node for node in self.graph if node.site == site)

    def top(self, n: int) -> list[Node]:
        """Return the `n` nodes of largest absolute attribution, error nodes left out."""
        return self._by_size(node for node in self.graph if not node.is_error)[:n]

    def _by_size(self, nodes: Iterator[Node]) -> list[Node]:
        return sorted(nodes, key=lambda node: (-abs(self.record(node).attribution), node))

    def strongest_edges(self, nodes: Collection[Node] | None = None) -> list[tuple[Node, Node, float]]:
        """Return (source, target, weight), largest absolute weight first; `nodes`: only edges between these."""
        graph = self.graph if nodes is None else self.graph.subgraph(nodes)
        edges = [(source, target, float(weight)) for source, target, weight in graph.edges(data="weight")]
        return sorted(edges, key=lambda edge: (-abs(edge[2]), edge[0], edge[1]))

    def attributions(self) -> Float[np.ndarray, " node"]:
        """Return the attribution of each node of `index`, logits; 0 for an error node that the circuit lacks."""
        index = self.index
        values = np.zeros(len(index))
        for node in self.graph:
            values[index.offset(node)] = self.record(node).attribution
        return values

    def subcircuit(self, nodes: Collection[Node]) -> SparseFeatureCircuit:
        """Return the circuit of these nodes and the edges between them.

        Raises:
            InputError: A node is not in the circuit.
        """
        unknown = sorted(node for node in nodes if node not in self.graph)
        if unknown:
            known = ", ".join(str(node) for node in self.top(5))
            raise InputError(
                f"circuit of {self._header.category}: no node {', '.join(map(str, unknown))}; "
                f"it has {len(self)} nodes, the largest {known or 'none'}"
            )
        return SparseFeatureCircuit(self._header, nx.DiGraph(self.graph.subgraph(nodes)))

    def to_node_link(self) -> dict[str, Any]:
        """Return networkx's node-link form with names as ids, ready for `json.dumps`."""
        content: dict[str, Any] = nx.node_link_data(self._flat(), edges="edges")
        return content

    def to_graphml(self) -> str:
        """Return the circuit as GraphML, which Gephi, Cytoscape and yEd read; what was not measured is left out."""
        buffer = BytesIO()
        nx.write_graphml(self._flat(), buffer)
        return buffer.getvalue().decode("utf-8")

    def _flat(self) -> nx.DiGraph:
        """Return a copy with names as nodes and only plain values as attributes."""
        flat = nx.DiGraph(model=_xml_safe(self._header.model), category=_xml_safe(self._header.category))
        for node in self.index:
            if node in self.graph:
                flat.add_node(str(node), **_plain_values(self.record(node)))
        for source, target, weight in self.strongest_edges():
            flat.add_edge(str(source), str(target), weight=weight)
        return flat


def _plain_values(record: CircuitNode) -> dict[str, str | int | float]:
    low, high = record.interval
    values = {
        "site": record.site,
        "kind": "error" if record.latent is None else "latent",
        "latent": record.latent,
        "attribution": record.attribution,
        "attribution_low": low,
        "attribution_high": high,
        "stability": record.stability,
        "frequency_refused": record.frequency_refused,
        "frequency_complied": record.frequency_complied,
        "top_prompts": _xml_safe(" ".join(record.top_prompts)),
    }
    return {key: value for key, value in values.items() if value is not None}


_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def _xml_safe(text: str) -> str:
    """Return `text` without the characters that XML cannot hold."""
    return _NOT_XML.sub("", text)


def _damaged(file: CircuitFile, what: str) -> ArtefactError:
    return ArtefactError(f"circuit of {file.model}, {file.category}: {what}; make it anew with: {MAIN}")
