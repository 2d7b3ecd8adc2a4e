"""Landscapes of sub-networks of a supernet, masked, with batch statistics."""

import dataclasses
import logging

import numpy as np
import tensorflow as tf

from ekg.graph import records, registry
from ekg.graph.calls import layer_variables
from ekg.landscape import hessian, lanczos, surfaces
from ekg.landscape.exactness import check_second_derivatives

logger = logging.getLogger(__name__)


class MaskedLandscapes:
    """Makes the Landscapes of sub-networks of one supernet; all of them share one compiled product.

    The Hessian is the cut network's; parameters of channels that are not kept stay zero. A kernel
    that a batch norm follows is rescaled to its norm in the whole network, as κ depends on its
    scale; the loss is the sub-network's as it is. See hessian.norm_factors.
    """

    def __init__(self, supernet, batches, *, parameters="kernels", use_xla=False):
        """
        Args:
            supernet: the Supernet; its weights are read now.
            batches: data.Batches; images of one share batch statistics.
            parameters: "kernels" or "all".
            use_xla: whether to compile with XLA.

        Raises:
            EkgError: parameters is neither, or a layer's second derivatives are not exact.
        """
        hessian.check_parameters(parameters)
        check_second_derivatives(supernet.graph, hessian.SECOND_ORDER, training=True)
        self._supernet = supernet.with_options(hessian.SECOND_ORDER)
        self._weights = {
            name: [value.numpy() for value in values] for name, values in supernet.weights().items()
        }
        self._places, axes = [], []  # (layer key, number of the variable) of every parameter array
        places = {
            id(variable): (key, i)
            for key in self._weights
            for i, variable in enumerate(layer_variables(supernet.graph.layers[key]))
        }
        for variable in supernet.model.trainable_variables:  # in the order of the network cut out
            key, i = places[id(variable)]
            if parameters == "all" or len(variable.shape) > 1:
                self._places.append((key, i))
                axes.append(surfaces.filter_axes(supernet.graph.layers[key], variable))
        self._mask = tf.Variable(supernet.mask(supernet.whole()), trainable=False)
        arrays = [self._weights[name][i] for name, i in self._places]
        made = hessian.Parameters(arrays, axes, None, parameters, [np.float32(1)] * len(arrays))
        self._landscape = hessian.Landscape(
            self._forward, made, batches, batch_statistics=True, use_xla=use_xla
        )

    def __call__(self, subnetwork):
        """Returns the Landscape of a sub-network; the one returned before becomes invalid."""
        mask = self._supernet.mask(subnetwork)
        self._mask.assign(mask)
        support = _support(self._supernet, mask)
        weights = dict(self._weights)
        classifier = self._supernet.classifier
        if classifier is not None:  # the cut network's parameters, at the restored norm
            restored = self._supernet.with_restored_norm(classifier, weights[classifier.key], mask)
            weights[classifier.key] = [np.asarray(value) for value in restored]
        self._landscape.move_(
            [weights[name][i] for name, i in self._places],
            [support[name][i] for name, i in self._places],
            self._norm_factors(support),
        )
        return self._landscape

    def describe(self, ends):
        """Returns the hessian.Spectrum of a sub-network whose lanczos.Ends were computed."""
        return self._landscape.describe(ends)

    @property
    def dimension(self):
        """Parameters of the whole network."""
        return self._landscape.dimension

    def _norm_factors(self, support):
        """Returns the factor of each parameter array; see hessian.Parameters."""
        layers = self._supernet.graph.layers

        def kernels_of(call):
            kernel, _ = registry.fitted_of(call.layer)
            places = [id(variable) for variable in layer_variables(call.layer)]
            place = places.index(id(kernel))
            kernel = self._weights[call.key][place]
            return kernel, kernel * support[call.key][place]

        by_variable = hessian.norm_factors(self._supernet.graph, kernels_of)
        variables = [layer_variables(layers[name])[i] for name, i in self._places]
        return [by_variable.get(id(variable), np.float32(1)) for variable in variables]

    def _forward(self, arrays, images):
        weights = {name: list(values) for name, values in self._weights.items()}
        for (name, i), array in zip(self._places, arrays):
            weights[name][i] = array
        return self._supernet.forward(weights, tf.convert_to_tensor(self._mask), images)


def _support(supernet, mask):
    """Returns {layer key: list of 0/1 arrays}: which weights a network cut out by this mask has."""
    support = {}
    for call in supernet.graph.calls:
        variables, record = layer_variables(call.layer), registry.record_of(call.layer)
        if not variables:
            continue
        masks = {
            records.IN: mask[supernet.layout.index[call.inputs[0]]],
            records.OUT: mask[supernet.layout.index[call.output]],
        }
        masks[records.BACK] = masks[records.OUT]
        if record is not None and record.within:
            masks[records.WITHIN] = mask[supernet.layout.index[call.inputs[1]]]
        described = {} if record is None else records.weights_of(call.layer, record)
        support[call.key] = [
            _weight_support(described.get(id(variable), records.Weight(())), variable.shape, masks)
            for variable in variables
        ]
    return support


def _weight_support(weight, shape, masks):
    """Returns a 0/1 array of this shape: 1 where no axis of channels has its index removed."""
    support = np.ones(shape, np.float32)
    for axis, role in enumerate(weight.axes):
        if role is not None:
            along = np.zeros(shape[axis], np.float32)
            is_tiled = weight.is_tiled and role == records.OUT
            along[
                records.kept_indices(
                    np.flatnonzero(masks[role]), len(masks[role]), shape[axis], is_tiled
                )
            ] = 1
            support *= along.reshape([-1 if i == axis else 1 for i in range(len(weight.axes))])
    return support


class Spectra:
    """Spectra of the losses of sub-networks on D_val; the members of a team take one sub-network
    each.
    """

    def __init__(self, supernet, batches, compute):
        """
        Args:
            supernet: the Supernet; its weights are read now.
            batches: data.Batches of D_val.
            compute: Compute.
        """
        self._team, self._has_warned = compute.team, False
        self._landscapes = self._team.map_members(
            lambda _: MaskedLandscapes(supernet, batches, use_xla=compute.use_xla)
        )

    def __call__(self, subnetworks):
        """Returns the list of hessian.Spectrum; warns where an eigenvalue has not converged."""
        dealt = {
            member: range(member, len(subnetworks), self._team.size)
            for member in self._team.local_members
        }
        spectra_by_member = self._team.map_members(
            lambda member: [
                self._landscapes[member](subnetworks[i]).spectrum() for i in dealt[member]
            ]
        )
        table = np.zeros((len(subnetworks), len(dataclasses.fields(lanczos.Ends))))
        for member, spectra in spectra_by_member.items():
            for i, spectrum in zip(dealt[member], spectra):
                table[i] = [
                    getattr(spectrum, field.name) for field in dataclasses.fields(lanczos.Ends)
                ]
        return [self._spectrum(row) for row in self._team.sum_over_workers(table)]

    def _spectrum(self, row):
        """Returns the Spectrum of an array of numbers."""
        values = {
            field.name: field.type(value)
            for field, value in zip(dataclasses.fields(lanczos.Ends), row)
        }
        spectrum = next(iter(self._landscapes.values())).describe(lanczos.Ends(**values))
        if not spectrum.converged and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "an eigenvalue is known to a residual of %.3g only after %d products: condition "
                "numbers are rough.",
                max(spectrum.residual_smallest, spectrum.residual_largest),
                spectrum.products,
            )
        return spectrum
